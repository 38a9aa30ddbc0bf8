# Sourced: the cluster's certificates and kubeconfigs, in pki/ of its state.
# shellcheck shell=bash

create_authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=$cluster" \
    -addext keyUsage=critical,keyCertSign,digitalSignature -keyout "$pki/ca.key" -out "$pki/ca.crt" 2> /dev/null
  # Service account tokens are signed by a key of their own.
  openssl genrsa -out "$pki/service-account.key" 2048 2> /dev/null
  openssl rsa -in "$pki/service-account.key" -pubout -out "$pki/service-account.pub" 2> /dev/null
}

# create_certificate NAME SUBJECT EXTENSION...: NAME.key and NAME.crt, signed by the authority.
create_certificate() {
  local name=$1 subject=$2 extension; shift 2
  local arguments=()
  for extension; do arguments+=(-addext "$extension"); done
  openssl req -x509 -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -days 30 -subj "$subject" -addext basicConstraints=critical,CA:FALSE "${arguments[@]}" \
    -keyout "$pki/$name.key" -out "$pki/$name.crt" 2> /dev/null || fail "openssl could not sign $name"
}

# create_user NAME SUBJECT: NAME.kubeconfig of a client whom the API server knows by its certificate.
create_user() {
  create_certificate "$1" "$2" extendedKeyUsage=clientAuth
  cat > "$pki/$1.kubeconfig" << YAML
apiVersion: v1
kind: Config
clusters:
- name: $cluster
  cluster: {server: "https://$control_plane4:6443", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$pki/$1.crt"), client-key-data: $(base64 -w0 "$pki/$1.key")}
contexts:
- name: $1
  context: {cluster: $cluster, user: $1}
current-context: $1
YAML
}

create_pki() {
  create_authority
  create_certificate apiserver /CN=kube-apiserver extendedKeyUsage=serverAuth \
    "subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:10.96.0.1,IP:fd00:96::1,IP:$control_plane4,IP:$control_plane6"
  create_user admin /O=system:masters/CN=admin
  create_user controller-manager /CN=system:kube-controller-manager
  create_user scheduler /CN=system:kube-scheduler
  create_user kube-proxy /CN=system:kube-proxy
}
