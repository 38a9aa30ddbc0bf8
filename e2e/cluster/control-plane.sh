# Sourced: etcd, API server, controller manager and scheduler in the namespace of the control plane.
# shellcheck shell=bash

in_control_plane() { nsenter --net="/run/netns/$cluster-cp" "$@"; }
kubectl_() { in_control_plane kubectl --kubeconfig "$pki/admin.kubeconfig" "$@"; }
api_is_ready() { [ "$(kubectl_ get --raw /readyz 2> /dev/null)" = ok ]; }

start_control_plane_process() {
  local name=$1; shift
  command -v "$1" > /dev/null || fail "no $1 in $(program_path): run e2e/cluster/build"
  start_process "$name" nsenter --net="/run/netns/$cluster-cp" "$@"
}

start_etcd() {
  start_control_plane_process etcd etcd --data-dir "$state/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
}

start_apiserver() {
  # Node names don't resolve here: exec and logs reach kubelets by address.
  start_control_plane_process apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$control_plane4" \
    --bind-address=:: --secure-port=6443 --cert-dir="$state/apiserver" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --service-account-key-file="$pki/service-account.pub" --service-account-signing-key-file="$pki/service-account.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local --authorization-mode=Node,RBAC \
    --enable-admission-plugins=NodeRestriction --allow-privileged=true --service-cluster-ip-range="$service_networks" \
    --kubelet-preferred-address-types=InternalIP --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key"
}

start_controller-manager() {
  start_control_plane_process controller-manager kube-controller-manager --cert-dir="$state/controller-manager" --leader-elect=false \
    --kubeconfig="$pki/controller-manager.kubeconfig" --authentication-kubeconfig="$pki/controller-manager.kubeconfig" \
    --authorization-kubeconfig="$pki/controller-manager.kubeconfig" --use-service-account-credentials=true \
    --allocate-node-cidrs=true --cluster-cidr="$pod_networks" --node-cidr-mask-size-ipv4=24 --node-cidr-mask-size-ipv6=64 \
    --service-cluster-ip-range="$service_networks" --service-account-private-key-file="$pki/service-account.key" \
    --root-ca-file="$pki/ca.crt" --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
    --node-monitor-grace-period=20s
}

start_scheduler() {
  start_control_plane_process scheduler kube-scheduler --cert-dir="$state/scheduler" --leader-elect=false --kubeconfig="$pki/scheduler.kubeconfig"
}

await_api() {
  await 90 api_is_ready && return
  pid_of etcd > /dev/null || fail_with_log "etcd ended" "$state/log/etcd.log"
  fail_with_log "the API server is not ready after 90 s" "$state/log/apiserver.log"
}

start_control_plane() {
  local began=$SECONDS
  plug_in cp "$control_plane4" "$control_plane6"
  create_pki
  start_etcd
  start_apiserver
  await_api
  # Started earlier, it would end: the roles it needs are made by the API server.
  start_controller-manager
  start_scheduler
  sed "s|@pod_networks@|$pod_networks|; s|@service_networks@|$service_networks|" "$here/objects/kubeadm-config.yaml" | kubectl_ apply -f - > /dev/null
  say "API server $(kubectl_ version -o json | sed -n '/serverVersion/,/}/s/.*"gitVersion": "\(.*\)".*/\1/p') is ready after $((SECONDS - began)) s"
}
