//! The runtime's side of CNI: reads the conflist as a runtime does and executes the plugins.
//!
//! Source: CNI spec 1.1.0, sections 3 and 4. It is only as much of libcni as a pod of the lab
//! needs; `cnitool` is the judge of conformity.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::namespace::Namespace;

/// The newest version that this runtime speaks.
const NEWEST: [u32; 3] = [1, 1, 0];

/// What a runtime knows of one attachment.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`, as the node sees it.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// The pod's name, for `CNI_ARGS`.
    pub pod: String,
    /// Values by capability.
    pub runtime_config: Value,
}

/// A plugin's error as the spec words it.
#[derive(Debug)]
pub struct CniError {
    /// The plugin's type.
    pub plugin: String,
    /// The spec's code, or the plugin's own from 100 on.
    pub code: u64,
    /// The short message.
    pub msg: String,
    /// More, if it said more.
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: code {}: {} {}", self.plugin, self.code, self.msg, self.details)
    }
}

impl std::error::Error for CniError {}

/// A node's network: its first configuration in lexical order.
pub(super) struct Network {
    machine: Rc<Namespace>,
    name: String,
    version: String,
    plugins: Vec<Value>,
}

impl Network {
    pub fn load(machine: Rc<Namespace>) -> Result<Self> {
        let folder = machine.path("/etc/cni/net.d");
        let mut files: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "conflist"));
        let first = files.into_iter().min();
        let path = first.with_context(|| format!("no conflist in /etc/cni/net.d of {}", machine.name()))?;
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let list: Value = serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        let name = list.get("name").and_then(Value::as_str).context("the conflist has no name")?.to_owned();
        let plugins =
            list.get("plugins").and_then(Value::as_array).context("the conflist has no plugins")?.clone();
        let version =
            newest_version(&list).with_context(|| format!("no usable cniVersion in {}", path.display()))?;
        Ok(Self { machine, name, version, plugins })
    }

    pub fn add(&self, attachment: &Attachment) -> Result<Value> {
        let mut result = None;
        for plugin in &self.plugins {
            let answer = self.call("ADD", plugin, Some(attachment), result.as_ref(), None)?;
            result = Some(answer.context("ADD gave no result")?);
        }
        result.context("the conflist has no plugins")
    }

    pub fn check(&self, attachment: &Attachment, result: &Value) -> Result<()> {
        let mut plugins = self.plugins.iter();
        plugins
            .try_for_each(|plugin| self.call("CHECK", plugin, Some(attachment), Some(result), None).map(drop))
    }

    pub fn delete(&self, attachment: &Attachment, result: Option<&Value>) -> Result<()> {
        let mut plugins = self.plugins.iter().rev();
        plugins.try_for_each(|plugin| self.call("DEL", plugin, Some(attachment), result, None).map(drop))
    }

    /// Collects what belongs to none of the attachments.
    pub fn collect(&self, valid: &[&Attachment]) -> Result<()> {
        let entry = |a: &&Attachment| json!({ "containerID": a.container_id, "ifname": a.ifname });
        let valid: Value = valid.iter().map(entry).collect();
        let mut plugins = self.plugins.iter();
        plugins.try_for_each(|plugin| self.call("GC", plugin, None, None, Some(&valid)).map(drop))
    }

    pub fn status(&self) -> Result<()> {
        let mut plugins = self.plugins.iter();
        plugins.try_for_each(|plugin| self.call("STATUS", plugin, None, None, None).map(drop))
    }

    fn call(
        &self,
        command: &str,
        plugin: &Value,
        attachment: Option<&Attachment>,
        previous: Option<&Value>,
        valid: Option<&Value>,
    ) -> Result<Option<Value>> {
        let kind = plugin.get("type").and_then(Value::as_str).context("a plugin has no type")?;
        let mut config = plugin.clone();
        let fields = config.as_object_mut().context("a plugin is not an object")?;
        fields.insert("cniVersion".into(), json!(self.version));
        fields.insert("name".into(), json!(self.name));
        if let Some(previous) = previous {
            fields.insert("prevResult".into(), previous.clone());
        }
        if let Some(valid) = valid {
            fields.insert("cni.dev/valid-attachments".into(), valid.clone());
        }
        let mut process = self.machine.command(format!("/opt/cni/bin/{kind}"));
        process.env("CNI_COMMAND", command).env("CNI_PATH", "/opt/cni/bin");
        if let Some(attachment) = attachment {
            let asked = attachment.runtime_config.as_object().into_iter().flatten();
            let able = |key: &str| plugin.pointer(&format!("/capabilities/{key}")) == Some(&json!(true));
            let values: serde_json::Map<_, _> =
                asked.filter(|(key, _)| able(key)).map(|(key, value)| (key.clone(), value.clone())).collect();
            if !values.is_empty() {
                fields.insert("runtimeConfig".into(), Value::Object(values));
            }
            process.env("CNI_CONTAINERID", &attachment.container_id);
            process.env("CNI_NETNS", &attachment.netns).env("CNI_IFNAME", &attachment.ifname);
            let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", attachment.pod);
            process.env("CNI_ARGS", args);
        }
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().with_context(|| format!("start plugin {kind}"))?;
        let input =
            child.stdin.take().context("the plugin has no stdin")?.write_all(config.to_string().as_bytes());
        let output = child.wait_with_output()?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if !output.status.success() {
            let Some(error) = answer.filter(|answer| answer.get("code").is_some()) else {
                let (out, err) =
                    (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                bail!("{command} by {kind} on {}: {}: {out}{err}", self.machine.name(), output.status);
            };
            let text = |field| error.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
            let code = error.get("code").and_then(Value::as_u64).unwrap_or_default();
            let error =
                CniError { plugin: kind.to_owned(), code, msg: text("msg"), details: text("details") };
            return Err(error).with_context(|| format!("{command} on {}", self.machine.name()));
        }
        input.with_context(|| format!("{kind} did not read its configuration"))?;
        Ok(answer)
    }
}

/// The highest of `cniVersion` and `cniVersions` that this runtime speaks.
fn newest_version(list: &Value) -> Option<String> {
    let several = list.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let all = list.get("cniVersion").into_iter().chain(several).filter_map(Value::as_str);
    let numbers = |text: &str| text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
    let usable = all.filter_map(|text| Some((numbers(text)?, text)));
    let newest = usable.filter(|(version, _)| version.as_slice() <= NEWEST.as_slice()).max();
    newest.map(|(_, text)| text.to_owned())
}
