//! What a write changes, and what is refused.

use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{add_nodes, call, get, names, request, server};

#[tokio::test]
async fn a_patch_on_status_never_changes_spec() {
    let api = server();
    add_nodes(&api, 0..1).await;
    let patch = json!({
        "metadata": { "annotations": { "k": "v" }, "labels": { "l": "v" }, "name": "other", "uid": "other" },
        "spec": { "podCIDRs": ["0.0.0.0/0"] },
        "status": { "phase": "x" },
    });
    let (status, node) = call(&api.router(), "PATCH", "/api/v1/nodes/n000/status", patch.clone()).await;
    assert_eq!(status, 200);
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.244.0.0/24"]));
    assert_eq!((&node["metadata"]["annotations"]["k"], &node["status"]["phase"]), (&json!("v"), &json!("x")));
    assert_eq!(node["metadata"]["name"], "n000");
    assert_ne!(node["metadata"]["uid"], "other");
    // The object itself is the other way about.
    let patch = json!({ "spec": { "podCIDRs": ["10.244.9.0/24"] }, "status": { "phase": "y" } });
    let (_, node) = call(&api.router(), "PATCH", "/api/v1/nodes/n000", patch).await;
    assert_eq!(
        (&node["spec"]["podCIDRs"], &node["status"]["phase"]),
        (&json!(["10.244.9.0/24"]), &json!("x"))
    );
}

#[tokio::test]
async fn bad_writes_are_refused_by_name() {
    let api = server();
    add_nodes(&api, 0..1).await;
    let router = api.router();
    let cases = [
        ("POST", "/api/v1/nodes", json!({ "metadata": { "name": "n000" } }), 409),
        ("POST", "/api/v1/nodes", json!({ "metadata": {} }), 422),
        ("POST", "/api/v1/nodes", json!([1]), 422),
        ("PATCH", "/api/v1/nodes/none/status", json!({}), 404),
        ("PATCH", "/api/v1/nodes/n000/status", json!({ "metadata": { "annotations": { "a": 1 } } }), 422),
        ("PATCH", "/api/v1/nodes/n000/status", json!({ "metadata": { "resourceVersion": "7" } }), 409),
        ("DELETE", "/api/v1/nodes/none", Value::Null, 404),
        ("PUT", "/api/v1/nodes", json!({}), 405),
        ("GET", "/api/v1/pods", Value::Null, 404),
        ("GET", "/api/v1/namespaces/kube-system/configmaps/kubeadm-config", Value::Null, 404),
    ];
    for (method, uri, body, wanted) in cases {
        let (status, answer) = call(&router, method, uri, body.clone()).await;
        assert_eq!(status.as_u16(), wanted, "{method} {uri} {body}");
        assert_eq!(answer["code"], wanted, "{method} {uri}");
        assert_ne!(answer["message"], "");
    }
    let mut patch = request("PATCH", "/api/v1/nodes/n000", &json!({}));
    patch.headers_mut().insert("content-type", "application/apply-patch+yaml".parse().unwrap());
    assert_eq!(router.oneshot(patch).await.unwrap().status(), 415);
}

#[tokio::test]
async fn events_and_configmaps_are_kept_by_namespace() {
    let api = server();
    let router = api.router();
    let event = json!({ "metadata": { "generateName": "n1." }, "reason": "UserSpaceDevice" });
    for path in ["/api/v1", "/apis/events.k8s.io/v1"] {
        let (status, made) =
            call(&router, "POST", &format!("{path}/namespaces/default/events"), event.clone()).await;
        assert_eq!(status, 201);
        assert!(made["metadata"]["name"].as_str().unwrap().starts_with("n1."));
        assert_eq!(made["metadata"]["namespace"], "default");
        let (_, all) = get(&api, &format!("{path}/events")).await;
        assert_eq!(all["items"][0]["reason"], "UserSpaceDevice");
        assert!(names(&get(&api, &format!("{path}/namespaces/other/events")).await.1).is_empty());
    }
    let map = json!({ "metadata": { "name": "kubeadm-config" }, "data": { "ClusterConfiguration": "x" } });
    call(&router, "POST", "/api/v1/namespaces/kube-system/configmaps", map).await;
    let (status, _) = get(&api, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config").await;
    assert_eq!(status, 200);
    let (_, policies) = get(&api, "/apis/networking.k8s.io/v1/networkpolicies").await;
    assert_eq!((policies["kind"].as_str(), names(&policies).len()), (Some("NetworkPolicyList"), 0));
}

#[tokio::test]
async fn conditions_are_merged_by_type() {
    let api = server();
    add_nodes(&api, 0..1).await;
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status });
    let network = |status: &str| condition("NetworkUnavailable", status);
    let delete = json!({ "type": "NetworkUnavailable", "$patch": "delete" });
    let (ready, missing) = (condition("Ready", "True"), json!({ "type": "Missing", "$patch": "delete" }));
    let steps = [
        (delete.clone(), json!([])),
        (ready.clone(), json!([ready])),
        (network("True"), json!([ready, network("True")])),
        (network("False"), json!([ready, network("False")])),
        (missing, json!([ready, network("False")])),
        (delete, json!([ready])),
    ];
    for (condition, wanted) in steps {
        let patch = json!({ "status": { "conditions": [condition] } });
        let mut request = request("PATCH", "/api/v1/nodes/n000/status", &patch);
        request
            .headers_mut()
            .insert("content-type", "application/strategic-merge-patch+json".parse().unwrap());
        assert_eq!(api.router().oneshot(request).await.unwrap().status(), 200);
        let (_, node) = get(&api, "/api/v1/nodes/n000").await;
        assert_eq!(node["status"]["conditions"], wanted);
    }
}
