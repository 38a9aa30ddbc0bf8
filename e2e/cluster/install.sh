# Sourced: cluster DNS, and wg-overlay as a user installs it.
# shellcheck shell=bash

install_dns() { kubectl_ apply -f "$here/objects/coredns.yaml" > /dev/null; }

# The rendered manifest, with the image of this checkout.
overlay_manifest() { sed 's|\(image: *"\{0,1\}ghcr.io/wg-overlay/wg-overlay\):[^" ]*|\1:dev|' "$repository/deploy/wg-overlay.yaml"; }

dns_is_ready() { [ "$(kubectl_ --namespace kube-system get deployment coredns -o jsonpath='{.status.readyReplicas}')" = 2 ]; }

why_not_ready() {
  kubectl_ get nodes,pods --all-namespaces -o wide || true
  kubectl_ --namespace wg-overlay logs --tail 20 --prefix -l app.kubernetes.io/name=wg-overlay || true
}

# Pods of an older build don't end by themselves: the tag is the same. The device's pods have no rollout to wait for.
replace_pods() {
  kubectl_ --namespace wg-overlay delete pods --all > /dev/null
  { kubectl_ --namespace wg-overlay rollout status daemonset wg-overlay-agent --timeout 180s &&
    kubectl_ --namespace wg-overlay wait pods --all --for condition=Ready --timeout 180s; } > /dev/null ||
    fail "the new pods don't become ready"
}

install_overlay() {
  local began=$SECONDS build
  build=$(sha256sum < "$images/wg-overlay.tar")
  overlay_manifest | kubectl_ apply -f - > /dev/null || fail "deploy/wg-overlay.yaml was refused"
  await 180 nodes_are_ready || { why_not_ready >&2; fail "nodes are not Ready 180 s after the installation"; }
  if [ -e "$state/installed" ] && [ "$(cat "$state/installed")" != "$build" ]; then replace_pods; fi
  echo "$build" > "$state/installed"
  say "nodes are Ready $((SECONDS - began)) s after the installation"
  await 120 dns_is_ready || { why_not_ready >&2; fail "cluster DNS is not ready 120 s after the nodes"; }
}
