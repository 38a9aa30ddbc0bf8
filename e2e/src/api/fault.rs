//! What goes wrong on purpose: set by `POST /faults` on the server's own socket, all cleared by
//! `DELETE /faults`. Only the clients under test meet faults; the socket never does.

use serde::Deserialize;
use serde_json::{Value, json};

use super::store::Objects;

/// The body of `POST /faults`. A field that is left out changes nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Demand {
    /// Makes the next requests fail.
    pub fail: Option<Fail>,
    /// Watches stay open and send nothing, neither bookmarks nor their end.
    pub silent: Option<bool>,
    /// Ends every open watch half-way through a line.
    pub cut_watches: bool,
    /// The next so many lists, streaming ones too, are empty, with the present resource version.
    pub empty_lists: Option<u32>,
    /// The next so many lists end half-way.
    pub cut_lists: Option<u32>,
    /// From now on a streaming list begins with the Nodes as they are at this moment, and its watch stands still until the fault
    /// ends: a server that lags behind. Streams that are open go on.
    pub lag: Option<bool>,
    /// Each answer waits so long, in milliseconds.
    pub delay_millis: Option<u64>,
    /// Off: `sendInitialEvents` is answered by 422, as by a server without streaming lists.
    pub streaming_lists: Option<bool>,
    /// Forgets all history: every older resource version and continue token is 410 Gone.
    pub compact: bool,
    /// Requests without this bearer token are answered by 401.
    pub token: Option<String>,
}

/// Requests that fail.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fail {
    /// How many of the matching requests.
    pub count: u32,
    /// With which HTTP status.
    pub status: u16,
    /// Only this method.
    #[serde(default)]
    pub method: Option<String>,
    /// Only paths that begin so.
    #[serde(default)]
    pub path: Option<String>,
}

/// What a server that lags behind says.
struct Lagging {
    /// Its resource version and Nodes.
    present: (u64, Objects),
    /// How many lists it gave.
    lists: u32,
}

/// The faults in force.
pub struct Faults {
    fail: Option<Fail>,
    empty_lists: u32,
    cut_lists: u32,
    pub silent: bool,
    /// What a server that lags behind says.
    lagging: Option<Lagging>,
    pub delay_millis: u64,
    pub streaming_lists: bool,
    token: Option<String>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            fail: None,
            empty_lists: 0,
            cut_lists: 0,
            silent: false,
            lagging: None,
            delay_millis: 0,
            streaming_lists: true,
            token: None,
        }
    }
}

impl Faults {
    /// Takes over what a demand sets for the time to come; `present` are the Nodes as they are.
    pub fn set(&mut self, demand: &Demand, present: (u64, Objects)) {
        match demand.lag {
            Some(true) => self.lagging = Some(Lagging { present, lists: 0 }),
            Some(false) => self.lagging = None,
            None => {}
        }
        if let Some(fail) = &demand.fail {
            self.fail = Some(fail.clone());
        }
        self.silent = demand.silent.unwrap_or(self.silent);
        self.empty_lists = demand.empty_lists.unwrap_or(self.empty_lists);
        self.cut_lists = demand.cut_lists.unwrap_or(self.cut_lists);
        self.delay_millis = demand.delay_millis.unwrap_or(self.delay_millis);
        self.streaming_lists = demand.streaming_lists.unwrap_or(self.streaming_lists);
        self.token = demand.token.clone().or(self.token.take());
    }

    /// Whether these are the credentials that a test demands.
    pub fn knows(&self, authorization: Option<&str>) -> bool {
        self.token.as_ref().is_none_or(|token| {
            authorization.and_then(|value| value.strip_prefix("Bearer ")) == Some(token.as_str())
        })
    }

    /// The status that this request is to fail with. Counts.
    pub fn take_failure(&mut self, method: &str, path: &str) -> Option<u16> {
        let fail = self.fail.as_mut()?;
        let matches = fail.method.as_deref().is_none_or(|m| m.eq_ignore_ascii_case(method))
            && fail.path.as_deref().is_none_or(|p| path.starts_with(p));
        if !matches || fail.count == 0 {
            return None;
        }
        fail.count -= 1;
        Some(fail.status)
    }

    /// What a streaming list begins with, if the server lags behind. Counts.
    pub fn take_lagging_list(&mut self) -> Option<(u64, Objects)> {
        let lagging = self.lagging.as_mut()?;
        lagging.lists += 1;
        Some(lagging.present.clone())
    }

    /// Whether the server lags behind.
    pub fn is_lagging(&self) -> bool {
        self.lagging.is_some()
    }

    /// Whether this list is to be empty. Counts.
    pub fn take_empty_list(&mut self) -> bool {
        let empty = self.empty_lists > 0;
        self.empty_lists = self.empty_lists.saturating_sub(1);
        empty
    }

    /// Whether this list is to end half-way. Counts.
    pub fn take_cut_list(&mut self) -> bool {
        let cut = self.cut_lists > 0;
        self.cut_lists = self.cut_lists.saturating_sub(1);
        cut
    }

    /// What is in force, for `GET /faults`.
    pub fn to_json(&self) -> Value {
        json!({
            "failuresLeft": self.fail.as_ref().map_or(0, |f| f.count),
            "emptyLists": self.empty_lists,
            "cutLists": self.cut_lists,
            "silent": self.silent,
            "laggingLists": self.lagging.as_ref().map(|lagging| lagging.lists),
            "delayMillis": self.delay_millis,
            "streamingLists": self.streaming_lists,
        })
    }
}
