# Sourced by `node`: what its services are told.
# shellcheck shell=bash

node_addresses() { echo "172.30.0.$(cat "$folder/host"),fd00:30::$(cat "$folder/host")"; }

containerd_config() {
  case $(containerd_module) in
    containerd-1.7) containerd_1_config ;;
    *) containerd_2_config ;;
  esac
}

# restrict_oom_score_adj: without CAP_SYS_RESOURCE runc can't lower it ("can't get final child's PID from pipe: EOF").
containerd_2_config() {
  cat << TOML
version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$sandbox_image"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
TOML
}

containerd_1_config() {
  cat << TOML
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$sandbox_image"
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
TOML
}

# failCgroupV1 is a field since 1.31. The disk is this host's: how full it is says nothing about the cluster.
kubelet_config() {
  cat << YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$cluster-$NODE
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
enforceNodeAllocatable: [pods]
maxPods: 200
registerWithTaints: $([ "$NODE" = cp ] && echo '[{key: node-role.kubernetes.io/control-plane, effect: NoSchedule}]' || echo '[]')
resolvConf: /run/resolv.conf
clusterDNS: [$dns_service]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/volume-plugins
YAML
}

# No clusterCIDR, which would hide wrong source addresses. conntrack's global limits can't be written from a namespace.
kube_proxy_config() {
  cat << YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $state/pki/kube-proxy.kubeconfig}
hostnameOverride: $NODE
mode: ${PROXY_MODE/none/nftables}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
}
