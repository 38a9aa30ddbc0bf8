//! The network configuration on stdin.

use std::{
    io::{self, Read},
    path::PathBuf,
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::CniError;

/// What VERSION answers, oldest first.
pub(crate) const SUPPORTED_VERSIONS: &[&str] = &["0.3.1", "0.4.0", "1.0.0", LATEST_VERSION];
pub(crate) const LATEST_VERSION: &str = "1.1.0";
pub(crate) const DEFAULT_STATE_DIR: &str = "/run/wg-overlay";

/// More than any configuration with the attachments of a full node; a bound, because stdin is not ours.
const STDIN_MAX: u64 = 16 * 1024 * 1024;

/// The keys that this plugin reads; the specification lets others stand.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetConf {
    #[serde(default)]
    pub(crate) cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(default = "default_state_dir")]
    pub(crate) state_dir: PathBuf,
    /// Given back in the result as it is.
    pub(crate) dns: Option<Map<String, Value>>,
    /// Decoded by the commands that use it: DEL must not fail over it.
    prev_result: Option<Map<String, Value>>,
    #[serde(rename = "cni.dev/valid-attachments")]
    pub(crate) valid_attachments: Option<Vec<Attachment>>,
}

/// The result of the plugins before this one, or in CHECK of ADD.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct PrevResult {
    #[serde(default)]
    pub(crate) interfaces: Vec<Map<String, Value>>,
    #[serde(default)]
    pub(crate) ips: Vec<Map<String, Value>>,
    #[serde(default)]
    pub(crate) routes: Vec<Map<String, Value>>,
    #[serde(default)]
    pub(crate) dns: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Attachment {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

fn default_state_dir() -> PathBuf {
    DEFAULT_STATE_DIR.into()
}

pub(crate) fn read_stdin() -> Result<Vec<u8>, CniError> {
    let mut text = Vec::new();
    io::stdin().take(STDIN_MAX + 1).read_to_end(&mut text).map_err(|source| CniError::Io {
        action: "read the network configuration from stdin".into(),
        source,
    })?;
    if text.len() as u64 > STDIN_MAX {
        return Err(CniError::Config(format!("stdin is longer than {STDIN_MAX} bytes")));
    }
    Ok(text)
}

impl NetConf {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, CniError> {
        if text.trim_ascii().is_empty() {
            return Err(CniError::StdinEmpty);
        }
        // By way of a map, because serde takes an array for a struct as well.
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(CniError::Decode)?;
        let conf: Self = serde_json::from_value(object.into()).map_err(CniError::Decode)?;
        // "Section 1: Network configuration format": the name's first and other characters.
        let other = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if !conf.name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            || !conf.name.bytes().all(other)
        {
            return Err(CniError::Config(format!(
                "name {:?} must be letters, digits, '_', '.' or '-' that begin with a letter or digit",
                conf.name
            )));
        }
        if !conf.state_dir.is_absolute() {
            return Err(CniError::Config(format!("stateDir {:?} must be an absolute path", conf.state_dir)));
        }
        if !SUPPORTED_VERSIONS.contains(&conf.cni_version.as_str()) {
            return Err(CniError::Version(conf.cni_version));
        }
        Ok(conf)
    }

    pub(crate) fn prev_result(&self) -> Result<Option<PrevResult>, CniError> {
        let decode = |object| serde_json::from_value(Value::Object(object)).map_err(CniError::Decode);
        self.prev_result.clone().map(decode).transpose()
    }

    /// Refuses a command that came into the specification after the version that the configuration is written in.
    pub(crate) fn at_least(&self, least: &'static str, command: &'static str) -> Result<(), CniError> {
        let place = |version: &str| SUPPORTED_VERSIONS.iter().position(|known| *known == version);
        if place(&self.cni_version) < place(least) {
            return Err(CniError::CommandVersion { command, least, asked: self.cni_version.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Result<(), u32> {
        NetConf::parse(text.as_bytes()).map(drop).map_err(|error| error.code())
    }

    #[test]
    fn bad_input_has_the_codes_of_the_specification() {
        let cases = [
            ("", 6),
            (" \n", 6),
            ("{", 6),
            ("[]", 6),
            (r#""text""#, 6),
            (r#"{"cniVersion":1,"name":"n"}"#, 6),
            (r#"{"cniVersion":"1.1.0","name":7}"#, 6),
            (r#"{"cniVersion":"1.1.0","name":"n","stateDir":[]}"#, 6),
            (r#"{"cniVersion":"1.1.0","name":"n","dns":"8.8.8.8"}"#, 6),
            (r#"{"cniVersion":"1.1.0","name":"n","prevResult":[]}"#, 6),
            (r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":{}}"#, 6),
            (r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":1}]}"#, 6),
            (r#"{"cniVersion":"1.1.0"}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"a/b"}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"n","stateDir":"run"}"#, 7),
            (r#"{"name":"n"}"#, 1),
            (r#"{"cniVersion":"0.2.0","name":"n"}"#, 1),
            (r#"{"cniVersion":"1.2.0","name":"n"}"#, 1),
        ];
        for (text, expected) in cases {
            assert_eq!(code(text), Err(expected), "{text}");
        }
        let unknown = r#"{"cniVersion":"1.1.0","name":"n","type":"x","capabilities":{"a":true},"runtimeConfig":{"b":1}}"#;
        assert_eq!(code(unknown), Ok(()));
    }
}
