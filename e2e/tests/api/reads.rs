//! Lists, pages and watches.

use serde_json::{Value, json};

use super::{Lines, add_nodes, call, fault, get, names, server};

#[tokio::test]
async fn pages_show_one_moment() {
    let api = server();
    add_nodes(&api, 0..5).await;
    let (_, first) = get(&api, "/api/v1/nodes?limit=2").await;
    assert_eq!(names(&first), ["n000", "n001"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    add_nodes(&api, 5..6).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = get(&api, &format!("/api/v1/nodes?limit=10&continue={token}")).await;
    assert_eq!(names(&second), ["n002", "n003", "n004"], "n005 came after the list began");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(second["metadata"]["continue"], Value::Null);
    assert_eq!(get(&api, "/api/v1/nodes?continue=nonsense").await.0, 400);
}

#[tokio::test]
async fn old_versions_are_gone() {
    let api = server();
    add_nodes(&api, 0..3).await;
    let (_, page) = get(&api, "/api/v1/nodes?limit=1").await;
    let (token, version) =
        (page["metadata"]["continue"].clone(), page["metadata"]["resourceVersion"].clone());
    let (token, version) = (token.as_str().unwrap(), version.as_str().unwrap());
    fault(&api, json!({ "compact": true })).await;
    let (status, answer) = get(&api, &format!("/api/v1/nodes?limit=1&continue={token}")).await;
    assert_eq!((status.as_u16(), answer["reason"].as_str()), (410, Some("Expired")));
    let mut watch = Lines::open(&api, &format!("resourceVersion={version}")).await;
    let gone = watch.expect("ERROR").await;
    assert_eq!(gone["code"], 410);
    assert!(watch.next().await.unwrap().is_none());
    assert_eq!(get(&api, "/api/v1/nodes?resourceVersion=999").await.0, 504);
    assert_eq!(get(&api, "/api/v1/nodes?watch=1&resourceVersion=999").await.0, 504);
}

#[tokio::test]
async fn a_watch_sends_every_change_after_its_version() {
    let api = server();
    add_nodes(&api, 0..2).await;
    let mut watch = Lines::open(&api, "resourceVersion=1").await;
    watch.expect("ADDED n001").await;
    let patch = json!({ "metadata": { "annotations": { "a": "b" } } });
    call(&api.router(), "PATCH", "/api/v1/nodes/n000/status", patch.clone()).await;
    let seen = watch.expect("MODIFIED n000").await;
    assert_eq!(seen["metadata"]["annotations"]["a"], "b");
    // The same again is no write.
    call(&api.router(), "PATCH", "/api/v1/nodes/n000/status", patch).await;
    call(&api.router(), "DELETE", "/api/v1/nodes/n001", Value::Null).await;
    watch.expect("DELETED n001").await;
    let mut one = Lines::open(&api, "fieldSelector=metadata.name%3Dn000&timeoutSeconds=0").await;
    one.expect("ADDED n000").await;
    assert!(one.next().await.unwrap().is_none(), "timeoutSeconds ends a watch");
}

#[tokio::test]
async fn bookmarks_come_only_where_asked() {
    let api = server();
    add_nodes(&api, 0..1).await;
    let mut with = Lines::open(&api, "resourceVersion=1&allowWatchBookmarks=true").await;
    let bookmark = with.expect("BOOKMARK").await;
    assert_eq!(
        (bookmark["kind"].as_str(), bookmark["metadata"]["resourceVersion"].as_str()),
        (Some("Node"), Some("1"))
    );
    let mut without = Lines::open(&api, "resourceVersion=1&timeoutSeconds=1").await;
    assert!(without.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_mark() {
    let api = server();
    add_nodes(&api, 0..2).await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = Lines::open(&api, query).await;
    watch.expect("ADDED n000").await;
    watch.expect("ADDED n001").await;
    let mark = watch.expect("BOOKMARK").await;
    assert_eq!(mark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(
        get(&api, "/api/v1/nodes?watch=1&sendInitialEvents=true").await.0,
        422,
        "without resourceVersionMatch"
    );
    fault(&api, json!({ "streamingLists": false })).await;
    assert_eq!(get(&api, &format!("/api/v1/nodes?watch=1&{query}")).await.0, 422, "an older server");
}
