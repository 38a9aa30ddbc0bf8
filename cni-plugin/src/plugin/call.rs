//! The call's parameters: the environment that the runtime sets.

use std::{ffi::OsString, path::PathBuf};

use wg_overlay_ipam::Holder;

use super::error::CniError;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Add { holder: Holder, netns: PathBuf },
    Del { holder: Holder },
    Check { holder: Holder, netns: PathBuf },
    Gc,
    Status,
    Version,
}

impl Call {
    /// Reads the environment by the CNI specification 1.1.0, "Parameters" and each command's required list. Every missing
    /// variable is named at once.
    pub(crate) fn read(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<Self, CniError> {
        let get = |name| {
            let value = variable(name).unwrap_or_default().into_string();
            value.map_err(|value| CniError::Env { name, reason: format!("{value:?} is not UTF-8") })
        };
        let command = get("CNI_COMMAND")?;
        let required: &[&str] = match command.as_str() {
            "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME"],
            "GC" => &["CNI_PATH"],
            "STATUS" | "VERSION" => &[],
            "" => &["CNI_COMMAND"],
            other => {
                return Err(CniError::Env { name: "CNI_COMMAND", reason: format!("{other:?} is unknown") });
            }
        };
        let mut missing = Vec::new();
        for name in required {
            if get(name)?.is_empty() {
                missing.push(*name);
            }
        }
        if !missing.is_empty() {
            return Err(CniError::EnvMissing(missing));
        }
        let holder = || Ok::<_, CniError>(Holder::new(&get("CNI_CONTAINERID")?, &get("CNI_IFNAME")?)?);
        let netns = || Ok::<_, CniError>(PathBuf::from(get("CNI_NETNS")?));
        Ok(match command.as_str() {
            "ADD" => Self::Add { holder: holder()?, netns: netns()? },
            "CHECK" => Self::Check { holder: holder()?, netns: netns()? },
            "DEL" => Self::Del { holder: holder()? },
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            _ => Self::Version,
        })
    }
}
