//! The CNI folders and what is in them.

use rustix::fs::{Access, access};

use super::{Facts, Found, fail, ok, skipped, warn};
use crate::cni_install::{CONFLIST, PLUGIN};

pub(super) fn directories(facts: &Facts) -> Found {
    let folders = [&facts.config.cni_bin_dir, &facts.config.cni_conf_dir];
    let broken = folders.iter().filter_map(|folder| {
        let path = facts.own.path(folder);
        // the agent makes what is missing
        let there = path.ancestors().find(|p| p.exists())?;
        access(there, Access::WRITE_OK).err().map(|error| format!("{}: {error}", folder.display()))
    });
    let broken: Vec<_> = broken.collect();
    Ok(if broken.is_empty() {
        ok(folders.map(|f| f.display().to_string()).join(", "))
    } else {
        fail(
            format!("can't be written: {}", broken.join("; ")),
            "run as root; where the host's folder is read-only, set cni.binDir and cni.confDir to the runtime's",
        )
    })
}

pub(super) fn plugins(facts: &Facts) -> Found {
    let folder = &facts.config.cni_bin_dir;
    let there = |name: &&str| facts.own.exists(folder.join(name));
    let missing: Vec<_> =
        ["loopback", "portmap", "bandwidth"].into_iter().filter(|name| !there(name)).collect();
    let cure = format!(
        "install the reference plugins into {} (package containernetworking-plugins)",
        folder.display()
    );
    Ok(match &facts.config.cni_chain {
        Some(chain) if chain.iter().any(|name| !there(&name.as_str())) => {
            fail(format!("cni.chain names what {} lacks: pods can't start", folder.display()), cure)
        }
        _ if !there(&PLUGIN) => fail(
            format!("{} has no {PLUGIN}", folder.display()),
            "the agent installs it once it is ready; is cni.binDir the runtime's?",
        ),
        _ if missing.is_empty() => ok("ours, loopback, portmap and bandwidth"),
        _ => warn(
            format!(
                "missing: {}. Without portmap no hostPort, without bandwidth no limits, without loopback some runtimes start no pod",
                missing.join(", ")
            ),
            cure,
        ),
    })
}

pub(super) fn conflist(facts: &Facts) -> Found {
    let folder = &facts.config.cni_conf_dir;
    let Some(path) = folder.to_str() else { return Ok(skipped("cni.confDir is no text")) };
    let mut names: Vec<_> =
        [".conf", ".conflist", ".json"].iter().flat_map(|end| facts.own.names(path, end)).collect();
    names.sort();
    Ok(match names.iter().position(|name| name == CONFLIST) {
        None => fail(
            format!("{path} has no {CONFLIST}"),
            "the agent writes it once it is ready; is cni.confDir the runtime's?",
        ),
        Some(0) => ok(format!("{CONFLIST} comes first of {}", names.len())),
        Some(at) => {
            let before = names.get(..at).unwrap_or_default().join(", ");
            fail(
                format!("{before} comes before {CONFLIST}: the runtime takes the first"),
                format!("remove the other network from {path}"),
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Outcome,
        facts::tests::{facts, put},
    };

    #[test]
    fn a_conflist_before_ours_fails() {
        let (facts, _folder) = facts();
        assert!(matches!(conflist(&facts), Ok(Outcome::Fail { .. })));
        put(&facts, "/etc/cni/net.d/10-wg-overlay.conflist", "{}");
        put(&facts, "/etc/cni/net.d/99-bridge.conflist", "{}");
        assert!(matches!(conflist(&facts), Ok(Outcome::Ok { .. })));
        put(&facts, "/etc/cni/net.d/05-cilium.conflist", "{}");
        assert!(matches!(conflist(&facts), Ok(Outcome::Fail { cause, .. }) if cause.contains("05-cilium")));
    }

    #[test]
    fn missing_plugins_warn_and_one_that_is_chained_fails() {
        let (mut facts, _folder) = facts();
        put(&facts, "/opt/cni/bin/wg-overlay-cni", "");
        put(&facts, "/opt/cni/bin/loopback", "");
        assert!(
            matches!(plugins(&facts), Ok(Outcome::Warn { cause, .. }) if cause.contains("portmap, bandwidth"))
        );
        facts.config.cni_chain = Some(vec!["portmap".into()]);
        assert!(matches!(plugins(&facts), Ok(Outcome::Fail { .. })));
    }
}
