//! What a node says of itself in annotations, parsed once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    DEFAULT_LISTEN_PORT, EndpointError, EndpointSpec, KeyError, PublicKey, Rotation, prefix::is_routable,
};

/// The names of the annotations.
pub mod annotation {
    /// The prefix of all of ours.
    pub const PREFIX: &str = "wg-overlay.io/";
    /// The WireGuard public key, base64. Written by the agent.
    pub const PUBLIC_KEY: &str = "wg-overlay.io/public-key";
    /// The public key that the node changes to at its next rotation, base64. Written by the agent.
    pub const NEXT_PUBLIC_KEY: &str = "wg-overlay.io/next-public-key";
    /// `away` or `back` while the node's key rotates. Written by the agent.
    pub const ROTATION: &str = "wg-overlay.io/rotation";
    /// The overlay addresses, comma-separated. Written by the agent.
    pub const OVERLAY_IPS: &str = "wg-overlay.io/overlay-ips";
    /// The UDP port WireGuard listens on. Written by the agent.
    pub const LISTEN_PORT: &str = "wg-overlay.io/listen-port";
    /// The overlay's MTU on this node, in bytes. Written by the agent.
    pub const MTU: &str = "wg-overlay.io/mtu";
    /// Where other nodes reach this one. Written by a person.
    pub const ENDPOINT: &str = "wg-overlay.io/endpoint";
    /// Seconds between the keepalives other nodes send to this one. Written by a person.
    pub const PERSISTENT_KEEPALIVE: &str = "wg-overlay.io/persistent-keepalive";
    /// The public key as the Go wg-overlay writes it.
    pub const LEGACY_PUBLIC_KEY: &str = "wireguard-publickey";
    /// The overlay address as the Go wg-overlay writes it.
    pub const LEGACY_OVERLAY_IP: &str = "wireguard-ip";

    /// Whether a decision may depend on this annotation.
    pub fn is_relevant(name: &str) -> bool {
        name.starts_with(PREFIX) || name == LEGACY_PUBLIC_KEY || name == LEGACY_OVERLAY_IP
    }
}

/// The longest annotation value that is looked at: a DNS name has at most 253 characters (RFC 1035, section 2.3.4),
/// two addresses fewer.
const MAX_VALUE: usize = 300;

/// What a node says of itself, well formed, not yet believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// Its WireGuard public key.
    pub public_key: PublicKey,
    /// The key it changes to next.
    pub next_key: Option<PublicKey>,
    /// How far the change has come.
    pub rotation: Option<Rotation>,
    /// Its overlay addresses.
    pub overlay_ips: BTreeSet<IpAddr>,
    /// The UDP port it listens on.
    pub listen_port: u16,
    /// The overlay's MTU there, in bytes.
    pub mtu: Option<u32>,
    /// Where a person says that it is reached.
    pub endpoint: Option<EndpointSpec>,
    /// The keepalive a person asks for, in seconds.
    pub persistent_keepalive: Option<u16>,
}

/// Why annotations say nothing usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdvertisementError {
    /// There is no public key: no agent has run on that node.
    #[error("no agent has published a public key there")]
    NoPublicKey,
    /// The public key is no key.
    #[error("annotation {annotation}: {error}")]
    PublicKey {
        /// The annotation's name.
        annotation: &'static str,
        /// What is wrong with it.
        error: KeyError,
    },
    /// The word for a rotation is none.
    #[error("annotation wg-overlay.io/rotation: expected away or back")]
    Rotation,
    /// The endpoint is none.
    #[error("annotation wg-overlay.io/endpoint: {0}")]
    Endpoint(EndpointError),
    /// An overlay address is none.
    #[error("annotation {0}: expected addresses that a node can have, separated by commas")]
    OverlayIps(&'static str),
    /// A number is none, or out of range.
    #[error("annotation {annotation}: expected a number from {min} to {max}")]
    Number {
        /// The annotation's name.
        annotation: &'static str,
        /// The smallest value.
        min: u32,
        /// The largest value.
        max: u32,
    },
    /// A value is longer than any that is valid.
    #[error("annotation {0}: longer than 300 characters")]
    TooLong(&'static str),
}

impl Advertisement {
    /// Reads the annotations of a Node; the Go project's names count where ours are absent.
    ///
    /// # Errors
    /// [`AdvertisementError`] for the first value that is missing or malformed: a node that is half understood is
    /// not programmed.
    pub fn parse(annotations: &BTreeMap<String, String>) -> Result<Self, AdvertisementError> {
        let (key_name, key) = either(annotations, annotation::PUBLIC_KEY, annotation::LEGACY_PUBLIC_KEY)?
            .ok_or(AdvertisementError::NoPublicKey)?;
        let public_key = PublicKey::parse(key)
            .map_err(|error| AdvertisementError::PublicKey { annotation: key_name, error })?;
        let next_key =
            value(annotations, annotation::NEXT_PUBLIC_KEY)?.map(PublicKey::parse).transpose().map_err(
                |error| AdvertisementError::PublicKey { annotation: annotation::NEXT_PUBLIC_KEY, error },
            )?;
        let rotation = value(annotations, annotation::ROTATION)?
            .map(|word| Rotation::parse(word).ok_or(AdvertisementError::Rotation))
            .transpose()?;
        let overlay_ips = match either(annotations, annotation::OVERLAY_IPS, annotation::LEGACY_OVERLAY_IP)? {
            Some((name, text)) => parse_addresses(text).ok_or(AdvertisementError::OverlayIps(name))?,
            None => BTreeSet::new(),
        };
        let endpoint = value(annotations, annotation::ENDPOINT)?
            .map(EndpointSpec::parse)
            .transpose()
            .map_err(AdvertisementError::Endpoint)?;
        let port = number(annotations, annotation::LISTEN_PORT, 1, u16::MAX.into())?;
        let keepalive = number(annotations, annotation::PERSISTENT_KEEPALIVE, 0, u16::MAX.into())?;
        Ok(Self {
            public_key,
            next_key,
            rotation,
            overlay_ips,
            listen_port: port.and_then(|p| u16::try_from(p).ok()).unwrap_or(DEFAULT_LISTEN_PORT),
            mtu: number(annotations, annotation::MTU, 576, u16::MAX.into())?,
            endpoint,
            persistent_keepalive: keepalive.and_then(|k| u16::try_from(k).ok()),
        })
    }

    /// The annotations that say this: those an agent writes, with the Go project's names where `legacy` is set.
    pub fn annotations(&self, legacy: bool) -> BTreeMap<String, String> {
        let ips = self.overlay_ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut out = BTreeMap::from([
            (annotation::PUBLIC_KEY.to_owned(), self.public_key.to_string()),
            (annotation::OVERLAY_IPS.to_owned(), ips.join(",")),
            (annotation::LISTEN_PORT.to_owned(), self.listen_port.to_string()),
        ]);
        out.extend(self.next_key.map(|key| (annotation::NEXT_PUBLIC_KEY.to_owned(), key.to_string())));
        out.extend(self.rotation.map(|rotation| (annotation::ROTATION.to_owned(), rotation.to_string())));
        out.extend(self.mtu.map(|mtu| (annotation::MTU.to_owned(), mtu.to_string())));
        if legacy {
            out.insert(annotation::LEGACY_PUBLIC_KEY.to_owned(), self.public_key.to_string());
            // the Go project knows one IPv4 address (pkg/wireguard/host.go)
            let v4 = self.overlay_ips.iter().find(|ip| ip.is_ipv4());
            out.extend(v4.map(|ip| (annotation::LEGACY_OVERLAY_IP.to_owned(), ip.to_string())));
        }
        out
    }
}

type Annotations = BTreeMap<String, String>;

fn value<'a>(
    annotations: &'a Annotations,
    name: &'static str,
) -> Result<Option<&'a str>, AdvertisementError> {
    match annotations.get(name) {
        Some(text) if text.len() > MAX_VALUE => Err(AdvertisementError::TooLong(name)),
        Some(text) => Ok(Some(text.trim())),
        None => Ok(None),
    }
}

fn either<'a>(
    annotations: &'a Annotations,
    ours: &'static str,
    legacy: &'static str,
) -> Result<Option<(&'static str, &'a str)>, AdvertisementError> {
    Ok(match value(annotations, ours)? {
        Some(text) => Some((ours, text)),
        None => value(annotations, legacy)?.map(|text| (legacy, text)),
    })
}

fn number(
    annotations: &Annotations,
    name: &'static str,
    min: u32,
    max: u32,
) -> Result<Option<u32>, AdvertisementError> {
    let Some(text) = value(annotations, name)? else { return Ok(None) };
    match text.parse() {
        Ok(n) if (min..=max).contains(&n) => Ok(Some(n)),
        _ => Err(AdvertisementError::Number { annotation: name, min, max }),
    }
}

fn parse_addresses(text: &str) -> Option<BTreeSet<IpAddr>> {
    let ips = text.split(',').map(|ip| ip.trim().parse().ok().filter(is_routable));
    ips.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

    fn with(name: &str, text: &str) -> Result<Advertisement, AdvertisementError> {
        Advertisement::parse(&BTreeMap::from([
            (annotation::PUBLIC_KEY.into(), KEY.into()),
            (name.into(), text.into()),
        ]))
    }

    #[test]
    fn a_key_alone_is_enough() {
        let ad = with("other/annotation", "x").unwrap();
        assert_eq!((ad.listen_port, ad.mtu, ad.endpoint, ad.persistent_keepalive), (51820, None, None, None));
    }

    #[test]
    fn the_go_projects_annotations_are_read() {
        let ad = Advertisement::parse(&BTreeMap::from([
            (annotation::LEGACY_PUBLIC_KEY.into(), KEY.into()),
            (annotation::LEGACY_OVERLAY_IP.into(), "100.64.0.7".into()),
        ]))
        .unwrap();
        assert_eq!(ad.public_key.to_string(), KEY);
        assert_eq!(ad.overlay_ips, BTreeSet::from(["100.64.0.7".parse().unwrap()]));
    }

    #[test]
    fn each_bad_value_names_its_annotation() {
        let long = "1".repeat(10_000);
        for (name, text) in [
            (annotation::PUBLIC_KEY, ""),
            (annotation::PUBLIC_KEY, "c2hvcnQ="),
            (annotation::PUBLIC_KEY, "not base64 at all, and 44 characters long.."),
            (annotation::PUBLIC_KEY, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            (annotation::PUBLIC_KEY, long.as_str()),
            (annotation::NEXT_PUBLIC_KEY, "c2hvcnQ="),
            (annotation::ROTATION, "Away"),
            (annotation::ROTATION, ""),
            (annotation::OVERLAY_IPS, ""),
            (annotation::OVERLAY_IPS, "10.0.0.1,"),
            (annotation::OVERLAY_IPS, "::ffff:10.0.0.1"),
            (annotation::OVERLAY_IPS, "224.0.0.1"),
            (annotation::OVERLAY_IPS, "10.0.0.1/24"),
            (annotation::LISTEN_PORT, "0"),
            (annotation::LISTEN_PORT, "65536"),
            (annotation::LISTEN_PORT, "-1"),
            (annotation::MTU, "575"),
            (annotation::MTU, "70000"),
            (annotation::PERSISTENT_KEEPALIVE, "x"),
            (annotation::ENDPOINT, "127.0.0.1:51820"),
            (annotation::ENDPOINT, "192.0.2.1:0"),
            (annotation::ENDPOINT, "[::ffff:192.0.2.1]:51820"),
            (annotation::ENDPOINT, long.as_str()),
        ] {
            let error = with(name, text).expect_err(&format!("{name}={text} was taken"));
            assert!(error.to_string().contains(name), "{error}");
            assert!(error.to_string().len() < 200, "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer_and_never_a_panic(texts in proptest::collection::vec(".{0,400}", 8)) {
            let names = [
                annotation::PUBLIC_KEY, annotation::OVERLAY_IPS, annotation::LISTEN_PORT, annotation::MTU,
                annotation::ENDPOINT, annotation::PERSISTENT_KEEPALIVE, annotation::NEXT_PUBLIC_KEY,
                annotation::ROTATION,
            ];
            let annotations = names.iter().map(|n| (*n).to_owned()).zip(texts).collect();
            let _ = Advertisement::parse(&annotations);
        }

        #[test]
        fn what_an_agent_writes_is_what_others_read(
            key in any::<[u8; 32]>(), next in any::<[u8; 32]>(), away: bool, v4 in any::<u32>(), port in 1u16.., mtu in 576u32..=65535, legacy: bool,
        ) {
            prop_assume!(PublicKey::from_bytes(key).is_ok());
            let ip = IpAddr::from(std::net::Ipv4Addr::from_bits(v4));
            prop_assume!(is_routable(&ip));
            let ad = Advertisement {
                public_key: PublicKey::from_bytes(key).unwrap(), next_key: PublicKey::from_bytes(next).ok(),
                rotation: away.then_some(Rotation::Away), overlay_ips: BTreeSet::from([ip]), listen_port: port,
                mtu: Some(mtu), endpoint: None, persistent_keepalive: None,
            };
            prop_assert_eq!(Advertisement::parse(&ad.annotations(legacy)), Ok(ad));
        }
    }
}
