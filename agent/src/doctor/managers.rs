//! NetworkManager and systemd-networkd: whether they leave our links and routes alone, from their files.

use super::{
    Facts, Found, Outcome,
    facts::Files,
    ini::{assignments, matches, merged},
    ok, skipped, warn,
};

/// A link of each kind of ours, and its kind as systemd names it (Kind= in systemd.network(5)).
const OURS: [(&str, &str); 4] =
    [("wgo0", "wireguard"), ("wgo1", "wireguard"), ("wgobr0", "bridge"), ("wgp000000000000", "veth")];

fn host(facts: &Facts) -> Result<&Files, Outcome> {
    let hidden = || skipped("its files are not visible from the pod; run wg-overlay doctor on the host");
    facts.host_files.as_ref().ok_or_else(hidden)
}

pub(super) fn network_manager(facts: &Facts) -> Found {
    let files = host(facts)?;
    if !files.exists("/run/NetworkManager") {
        return Ok(ok("does not run"));
    }
    let taken: Vec<_> =
        OURS.iter().map(|(name, _)| *name).filter(|name| !is_unmanaged(files, name)).collect();
    Ok(if taken.is_empty() {
        ok("it runs and leaves our links alone")
    } else {
        warn(
            "it runs and is not told to leave our links alone",
            "in /etc/NetworkManager/conf.d/wg-overlay.conf: [keyfile] unmanaged-devices+=interface-name:wgo*;interface-name:wgp* and nmcli general reload",
        )
    })
}

/// As NetworkManager.conf(5) says: the file, then /usr/lib, /run and /etc's conf.d, and the last value counts.
fn is_unmanaged(files: &Files, link: &str) -> bool {
    let folders =
        ["/etc/NetworkManager/conf.d", "/run/NetworkManager/conf.d", "/usr/lib/NetworkManager/conf.d"];
    let mut paths: Vec<_> = merged(files, &folders, ".conf").into_values().collect();
    paths.push("/etc/NetworkManager/NetworkManager.conf".into());
    let mut listed = String::new();
    for (section, key, value) in
        paths.iter().filter_map(|p| files.read(p)).flat_map(|text| assignments(&text))
    {
        match (section.as_str(), key.as_str()) {
            ("keyfile", "unmanaged-devices") => listed = value,
            ("keyfile", "unmanaged-devices+") => listed = format!("{listed};{value}"),
            _ => {}
        }
    }
    let by_section = paths.iter().filter_map(|p| files.read(p)).any(|text| {
        let all = assignments(&text);
        let value = |section: &str, key: &str| {
            all.iter().filter(|(s, k, _)| s == section && k == key).map(|(_, _, v)| v.as_str()).next_back()
        };
        all.iter().filter(|(section, key, _)| section.starts_with("device") && key == "match-device").any(
            |(section, _, devices)| {
                matches!(value(section, "managed"), Some("0" | "false")) && is_in(devices, link)
            },
        )
    });
    by_section || is_in(&listed, link)
}

/// Whether a list of devices covers a link; `except:` takes it out again.
fn is_in(devices: &str, link: &str) -> bool {
    let named = |device: &str| {
        let device = device.trim();
        device == "*"
            || device
                .strip_prefix("interface-name:")
                .is_some_and(|g| matches(g.trim_start_matches('='), link))
    };
    let parts: Vec<_> = devices.split([';', ',']).map(str::trim).collect();
    let except = parts.iter().filter_map(|part| part.strip_prefix("except:")).any(named);
    !except && parts.iter().any(|part| named(part))
}

pub(super) fn systemd_networkd(facts: &Facts) -> Found {
    let files = host(facts)?;
    if !files.exists("/run/systemd/netif") {
        return Ok(ok("does not run"));
    }
    let taking: Vec<_> =
        OURS.iter().filter_map(|(name, kind)| Some((name, network_of(files, name, kind)?))).collect();
    let mut causes = Vec::new();
    let mut cures = Vec::new();
    if let Some((link, file)) = taking.first() {
        causes.push(format!("{file} takes our links ({link})"));
        cures.push("/etc/systemd/network/00-wg-overlay.network: [Match] Name=wgo* wgp* [Link] Unmanaged=yes");
    }
    if keeps_foreign_routes(files) != Some(true) {
        causes
            .push("it may remove routes that it did not make, ours among them (ManageForeignRoutes)".into());
        cures.push(
            "/etc/systemd/networkd.conf.d/wg-overlay.conf: [Network] ManageForeignRoutes=no ManageForeignRoutingPolicyRules=no",
        );
    }
    Ok(if causes.is_empty() {
        ok("it runs and leaves our links and routes alone")
    } else {
        warn(causes.join("; "), format!("{}; then systemctl restart systemd-networkd", cures.join("; and ")))
    })
}

/// Whether foreign routes stay (networkd.conf(5)); `None` where nothing is said, which means that they don't.
fn keeps_foreign_routes(files: &Files) -> Option<bool> {
    let folders = ["/etc", "/run", "/usr/local/lib", "/usr/lib"];
    let main = folders.iter().map(|f| format!("{f}/systemd/networkd.conf")).find(|path| files.exists(path));
    let parts = folders.map(|folder| format!("{folder}/systemd/networkd.conf.d"));
    let parts = merged(files, &parts.each_ref().map(String::as_str), ".conf");
    let texts = main.into_iter().chain(parts.into_values()).filter_map(|path| files.read(path));
    let mut values = texts.flat_map(|text| assignments(&text));
    let last = values.rfind(|(s, k, _)| s == "Network" && k == "ManageForeignRoutes");
    last.map(|(_, _, value)| !is_yes(&value))
}

/// The .network file that takes a link: the first by name that matches it decides (systemd.network(5)).
fn network_of(files: &Files, link: &str, kind: &str) -> Option<String> {
    let folders =
        ["/etc", "/run", "/usr/local/lib", "/usr/lib"].map(|folder| format!("{folder}/systemd/network"));
    let networks = merged(files, &folders.each_ref().map(String::as_str), ".network");
    networks.into_values().find_map(|path| {
        let all = assignments(&files.read(&path)?);
        let conditions: Vec<_> =
            all.iter().filter(|(section, _, value)| section == "Match" && !value.is_empty()).collect();
        let holds = |(_, key, value): &&(String, String, String)| match key.as_str() {
            "Name" => is_listed(value, link),
            "Kind" => is_listed(value, kind),
            // a veth and a bridge are of type ether too
            "Type" => {
                is_listed(value, if kind == "wireguard" { "wireguard" } else { "ether" })
                    || is_listed(value, kind)
            }
            // a MAC address, a driver, a path: hardware
            _ => false,
        };
        // without a condition systemd ignores the file
        let takes = !conditions.is_empty() && conditions.iter().all(holds);
        let unmanaged = all.iter().any(|(s, k, v)| s == "Link" && k == "Unmanaged" && is_yes(v));
        takes.then_some((!unmanaged).then_some(path))
    })?
}

/// A list of globs; one that begins with `!` turns the whole list round.
fn is_listed(list: &str, word: &str) -> bool {
    let (inverted, list) = list.strip_prefix('!').map_or((false, list), |rest| (true, rest));
    list.split_whitespace().any(|glob| matches(glob, word)) != inverted
}

fn is_yes(value: &str) -> bool {
    ["1", "yes", "true", "on"].contains(&value.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::tests::{facts, put};

    #[test]
    fn in_a_pod_they_are_skipped_and_said_so() {
        let (mut facts, _folder) = facts();
        facts.host_files = None;
        for check in [network_manager, systemd_networkd] {
            assert!(
                matches!(check(&facts), Err(Outcome::Skipped { reason }) if reason.contains("on the host"))
            );
        }
    }

    #[test]
    fn network_manager_must_be_told() {
        let (facts, _folder) = facts();
        assert!(matches!(network_manager(&facts), Ok(Outcome::Ok { .. })));
        put(&facts, "/run/NetworkManager/state", "");
        assert!(matches!(network_manager(&facts), Ok(Outcome::Warn { .. })));
        let conf = "/etc/NetworkManager/conf.d/k8s.conf";
        for text in [
            "[keyfile]\nunmanaged-devices=interface-name:wgo*;interface-name:wgp*\n",
            "[keyfile]\nunmanaged-devices=*,except:interface-name:eth0\n",
            "[device-wgo]\nmatch-device=interface-name:wg*\nmanaged=0\n",
        ] {
            put(&facts, conf, text);
            assert!(matches!(network_manager(&facts), Ok(Outcome::Ok { .. })), "{text}");
        }
        for text in [
            "[keyfile]\nunmanaged-devices=interface-name:wgo0\n",
            "[main]\nunmanaged-devices=*\n",
            "[keyfile]\nunmanaged-devices=*;except:interface-name:wgp*\n",
        ] {
            put(&facts, conf, text);
            assert!(matches!(network_manager(&facts), Ok(Outcome::Warn { .. })), "{text}");
        }
    }

    #[test]
    fn networkd_must_keep_foreign_routes_and_match_none_of_our_links() {
        let (facts, _folder) = facts();
        assert!(matches!(systemd_networkd(&facts), Ok(Outcome::Ok { .. })));
        put(&facts, "/run/systemd/netif/state", "");
        assert!(
            matches!(systemd_networkd(&facts), Ok(Outcome::Warn { cause, .. }) if cause.contains("ManageForeignRoutes"))
        );
        put(&facts, "/etc/systemd/networkd.conf.d/x.conf", "[Network]\nManageForeignRoutes=no\n");
        assert!(matches!(systemd_networkd(&facts), Ok(Outcome::Ok { .. })));
        for taking in ["Name=*", "Name=!lo", "Type=ether", "Name=wgo0 eth0", "Kind=!bond"] {
            put(
                &facts,
                "/etc/systemd/network/20-lan.network",
                &format!("[Match]\n{taking}\n[Network]\nDHCP=yes\n"),
            );
            assert!(
                matches!(systemd_networkd(&facts), Ok(Outcome::Warn { cause, .. }) if cause.contains("20-lan")),
                "{taking}"
            );
        }
        put(
            &facts,
            "/etc/systemd/network/00-ours.network",
            "[Match]\nName=wgo* wgp*\n[Link]\nUnmanaged=yes\n",
        );
        assert!(matches!(systemd_networkd(&facts), Ok(Outcome::Ok { .. })));
        for leaving in ["Name=en*", "MACAddress=00:00:5e:00:53:01", "Name=*\nDriver=virtio_net", ""] {
            std::fs::remove_file(facts.own.path("/etc/systemd/network/00-ours.network")).ok();
            put(&facts, "/etc/systemd/network/20-lan.network", &format!("[Match]\n{leaving}\n"));
            assert!(matches!(systemd_networkd(&facts), Ok(Outcome::Ok { .. })), "{leaving}");
        }
    }
}
