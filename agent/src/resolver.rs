//! Names of endpoints, asked of the node's own resolver once a minute; the last good answer is kept.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::sync::Notify;
use tracing::warn;
use wg_overlay_mesh::Resolved;

const INTERVAL: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(5);
/// Names asked for at once.
const CONCURRENT: usize = 8;

/// The names that are asked for and their answers.
#[derive(Clone, Default)]
pub struct Resolver(Arc<Inner>);

#[derive(Default)]
struct Inner {
    names: Mutex<BTreeSet<String>>,
    answers: Mutex<Resolved>,
    asked: Notify,
    answered: Notify,
}

impl Resolver {
    /// Says which names matter; new ones are asked for at once.
    pub fn want<'a>(&self, names: impl Iterator<Item = &'a String> + Clone) {
        let mut wanted = self.0.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.clone().eq(wanted.iter()) {
            return;
        }
        let names: BTreeSet<String> = names.cloned().collect();
        let new = names.difference(&wanted).next().is_some();
        self.0.answers.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
        *wanted = names;
        if new {
            self.0.asked.notify_one();
        }
    }

    /// The answers so far.
    pub fn answers(&self) -> Resolved {
        self.0.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until an answer differs from the one before.
    pub async fn changed(&self) {
        self.0.answered.notified().await;
    }

    /// Asks for ever.
    pub async fn run(&self) {
        loop {
            let names = self.0.names.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut answers = stream::iter(names).map(lookup).buffer_unordered(CONCURRENT);
            while let Some((name, answer)) = answers.next().await {
                self.take(name, answer);
            }
            // new names don't wait for the minute
            let _ = tokio::time::timeout(INTERVAL, self.0.asked.notified()).await;
        }
    }

    fn take(&self, name: String, answer: Result<BTreeSet<IpAddr>, String>) {
        match answer {
            Ok(ips) => {
                let ips: Vec<IpAddr> = ips.into_iter().collect();
                let mut answers = self.0.answers.lock().unwrap_or_else(PoisonError::into_inner);
                if answers.get(&name) != Some(&ips) {
                    answers.insert(name, ips);
                    self.0.answered.notify_one();
                }
            }
            Err(error) => warn!(name, error, "an endpoint's name has no answer; the last good one is kept"),
        }
    }
}

/// Asks once for each name; one without an answer is left out.
pub async fn resolve(names: BTreeSet<String>) -> Resolved {
    let answers = stream::iter(names).map(lookup).buffer_unordered(CONCURRENT);
    let good = answers.filter_map(async |(name, answer)| Some((name, answer.ok()?.into_iter().collect())));
    good.collect().await
}

async fn lookup(name: String) -> (String, Result<BTreeSet<IpAddr>, String>) {
    let answer = tokio::time::timeout(PATIENCE, addresses(&name)).await;
    let answer = match answer {
        Ok(Ok(ips)) => Ok(ips),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    };
    let answer = answer.and_then(|ips| if ips.is_empty() { Err("no address".to_owned()) } else { Ok(ips) });
    (name, answer)
}

async fn addresses(name: &str) -> std::io::Result<BTreeSet<IpAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.map(|a| a.ip()).collect())
}
