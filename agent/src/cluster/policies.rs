//! Whether the cluster has NetworkPolicies: they are not enforced, and whoever wrote them should hear of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Api, Client, api::ListParams};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::Reporter;

/// What status and Event say.
pub const NOT_ENFORCED: &str =
    "NetworkPolicies exist and are not enforced: wg-overlay lets every pod reach every pod";

/// One object's metadata is answered in milliseconds; after this long the API server is taken as gone.
const PATIENCE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_secs(600);
/// The API server may be reached later only.
const RETRY: Duration = Duration::from_secs(30);

/// Looks every ten minutes, and sends an Event the first time there are some. An API server that doesn't let the agent
/// look, or that knows no NetworkPolicies, is no news.
pub fn look_for_policies(client: Client, reporter: Arc<Reporter>) -> Arc<AtomicBool> {
    let found = Arc::new(AtomicBool::new(false));
    let answer = found.clone();
    tokio::spawn(async move {
        let api = Api::<NetworkPolicy>::all(client);
        let mut told = false;
        loop {
            let wait = match timeout(PATIENCE, api.list_metadata(&ListParams::default().limit(1))).await {
                Ok(Ok(list)) => {
                    let some = !list.items.is_empty();
                    answer.store(some, Ordering::Relaxed);
                    if some && !std::mem::replace(&mut told, true) {
                        warn!("{NOT_ENFORCED}");
                        reporter.warn("NetworkPolicyNotEnforced", NOT_ENFORCED.into()).await;
                    }
                    INTERVAL
                }
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                    debug!(code = status.code, "NetworkPolicies can't be listed");
                    INTERVAL
                }
                Ok(Err(_)) | Err(_) => RETRY,
            };
            sleep(wait).await;
        }
    });
    found
}
