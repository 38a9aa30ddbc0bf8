//! What is read is what was meant, whatever comes is answered, and nothing secret is repeated.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;

/// The words of the protocol and values of every kind, so that random text gets far.
fn line() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "set",
        "get",
        "private_key",
        "listen_port",
        "fwmark",
        "replace_peers",
        "public_key",
        "remove",
        "update_only",
        "preshared_key",
        "endpoint",
        "persistent_keepalive_interval",
        "replace_allowed_ips",
        "allowed_ip",
        "protocol_version",
        "",
        "nonsense",
    ]);
    let value = prop_oneof![
        "[0-9a-f]{64}",
        "[0-9]{1,6}",
        Just("true".to_owned()),
        "[0-9]{1,3}(\\.[0-9]{1,3}){3}[/:][0-9]{1,5}",
        "-?[0-9a-f:]{0,20}/[0-9]{1,3}",
        ".*",
    ];
    (key, value).prop_map(|(key, value)| format!("{key}={value}"))
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn set(text: &str) -> SetDevice {
    match Request::parse(text) {
        Ok(Request::Set(set)) => set,
        Ok(Request::Get) => panic!("read as a get: {text}"),
        Err(error) => panic!("{error}: {text}"),
    }
}

proptest! {
    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        let _ = Request::parse(&text);
    }

    #[test]
    fn any_lines_are_answered(lines in prop::collection::vec(line(), 0..12)) {
        let _ = Request::parse(&format!("set=1\n{}", lines.join("\n")));
    }

    #[test]
    fn an_error_repeats_no_value(key in "[a-z_]{1,20}", secret in "[0-9a-f]{65,80}") {
        for text in [
            format!("set=1\nprivate_key={secret}"),
            format!("set=1\n{key}={secret}"),
            format!("set=1\n{secret}"),
            format!("set=1\n{secret}={secret}"),
            format!("{secret}\n"),
            format!("set=1\npublic_key={}\npreshared_key={secret}", "01".repeat(32)),
        ] {
            if let Err(error) = Request::parse(&text) {
                let said = format!("{error} {error:?}");
                prop_assert!(!said.contains(&secret));
            }
        }
    }

    #[test]
    fn a_device_is_read_back(
        private in any::<[u8; 32]>(),
        port in any::<u16>(),
        mark in any::<u32>(),
        replace in any::<bool>(),
    ) {
        let flag = if replace { "replace_peers=true\n" } else { "" };
        let set = set(&format!(
            "set=1\nprivate_key={}\nlisten_port={port}\nfwmark={mark}\n{flag}", hex(&private)
        ));
        let key = set.private_key.flatten().map(|key| key.to_bytes());
        prop_assert_eq!(key, (private != [0; 32]).then_some(private));
        prop_assert_eq!(set.listen_port, Some(port));
        prop_assert_eq!(set.fwmark, Some(mark));
        prop_assert_eq!(set.replace_peers, replace);
        prop_assert!(set.peers.is_empty());
    }

    #[test]
    fn peers_are_read_back_in_order(
        peers in prop::collection::vec(
            (any::<[u8; 32]>(), any::<std::net::SocketAddrV6>(), any::<u16>(), any::<[u8; 4]>(), 0..=32_u8),
            0..5,
        ),
    ) {
        let mut text = "set=1\n".to_owned();
        for (key, endpoint, keepalive, address, prefix) in &peers {
            // Flow labels are no part of an endpoint's text.
            let endpoint = SocketAddr::from((*endpoint.ip(), endpoint.port()));
            let address = std::net::Ipv4Addr::from(*address);
            writeln!(
                text,
                "public_key={}\nendpoint={endpoint}\npersistent_keepalive_interval={keepalive}\n\
                 allowed_ip={address}/{prefix}",
                hex(key)
            )?;
        }
        let set = set(&text);
        prop_assert_eq!(set.peers.len(), peers.len());
        for (read, (key, endpoint, keepalive, address, prefix)) in set.peers.iter().zip(peers) {
            prop_assert_eq!(read.public_key.as_bytes(), &key);
            prop_assert_eq!(read.endpoint, Some(SocketAddr::from((*endpoint.ip(), endpoint.port()))));
            prop_assert_eq!(read.keepalive, Some(keepalive));
            let network = ipnetwork::Ipv4Network::new(address.into(), prefix)?;
            let network = ipnetwork::Ipv4Network::new(network.network(), prefix)?;
            prop_assert_eq!(&read.allowed_ips, &[AllowedIp::Add(network.into())]);
        }
    }
}

#[test]
fn what_is_not_the_protocol_is_refused() {
    let key = "01".repeat(32);
    for text in [
        "",
        "get=1\nlisten_port=1",
        "get=2",
        "set=2",
        " set=1",
        "set=1\nlisten_port=65536",
        "set=1\nlisten_port=-1",
        "set=1\nfwmark=4294967296",
        "set=1\nreplace_peers=false",
        "set=1\nendpoint=192.0.2.1:1",
        "set=1\nallowed_ip=10.0.0.0/8",
        "set=1\nprivate_key=00",
        "set=1\nno value",
        &format!("set=1\nprivate_key={}", "zz".repeat(32)),
        &format!("set=1\nprivate_key=+{}", "1".repeat(63)),
        &format!("set=1\npublic_key={key}\nendpoint=example.org:1"),
        &format!("set=1\npublic_key={key}\nendpoint=192.0.2.1"),
        &format!("set=1\npublic_key={key}\nallowed_ip=10.0.0.0/33"),
        &format!("set=1\npublic_key={key}\nallowed_ip=::/129"),
        &format!("set=1\npublic_key={key}\nprotocol_version=2"),
        &format!("set=1\npublic_key={key}\nlisten_port=1"),
        &format!("set=1\npublic_key={key}\nremove=1"),
    ] {
        assert!(Request::parse(text).is_err(), "{text:?}");
    }
}
