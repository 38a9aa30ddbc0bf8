//! Where a peer is reached, as it was written: an address or a name, with or without a port.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::prefix::is_routable;

/// An endpoint as a person writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointSpec {
    /// An address; without a port the peer's published listen port holds.
    Address(IpAddr, Option<u16>),
    /// A DNS name, resolved by this node's resolver.
    Name(String, Option<u16>),
}

/// Where an endpoint came from. Annotated and external ones may lie behind NAT and get a keepalive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointSource {
    /// The `wg-overlay.io/endpoint` annotation.
    Annotated,
    /// An InternalIP of the Node.
    Internal,
    /// An ExternalIP of the Node.
    External,
}

/// Why a text is no usable endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Neither an address nor a DNS name.
    #[error("expected ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, with the port optional")]
    Malformed,
    /// Port 0 or above 65535.
    #[error("the port must be 1 to 65535")]
    Port,
    /// Loopback, multicast, link-local, unspecified, or IPv4 in IPv6 form.
    #[error("{0} is not an address that another node can be reached at")]
    Unroutable(IpAddr),
}

impl EndpointSpec {
    /// Parses `192.0.2.7:51820`, `[2001:db8::7]:51820`, `edge.example.com:51820`, or any of them without a port.
    ///
    /// # Errors
    /// [`EndpointError`] where the text is none of them or names an address that no node can have.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = split_port(text)?;
        match host.parse::<IpAddr>() {
            Ok(ip) if is_routable(&ip) => Ok(Self::Address(ip, port)),
            Ok(ip) => Err(EndpointError::Unroutable(ip)),
            Err(_) if is_dns_name(host) => Ok(Self::Name(host.to_ascii_lowercase(), port)),
            Err(_) => Err(EndpointError::Malformed),
        }
    }

    /// The port written in the endpoint, if one is.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Address(_, port) | Self::Name(_, port) => *port,
        }
    }
}

impl fmt::Display for EndpointSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip, Some(port)) => SocketAddr::new(*ip, *port).fmt(f),
            Self::Address(ip, None) => ip.fmt(f),
            Self::Name(name, Some(port)) => write!(f, "{name}:{port}"),
            Self::Name(name, None) => f.write_str(name),
        }
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), EndpointError> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(EndpointError::Malformed)?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(parse_port(port)?))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(EndpointError::Malformed),
        };
    }
    match text.rsplit_once(':') {
        Some((host, port)) => Ok((host, Some(parse_port(port)?))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, EndpointError> {
    match text.parse() {
        Ok(0) | Err(_) => Err(EndpointError::Port),
        Ok(port) => Ok(port),
    }
}

/// A host name (RFC 1123, section 2.1): labels of letters, digits and inner hyphens, not all of it digits and dots.
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.split('.').all(label) && name.bytes().any(|b| b.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_told_apart() {
        for text in
            ["192.0.2.7:51820", "[2001:db8::7]:51820", "2001:db8::7", "192.0.2.7", "edge.example.com:443"]
        {
            assert_eq!(EndpointSpec::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            EndpointSpec::parse("Edge.Example.com").unwrap(),
            EndpointSpec::Name("edge.example.com".into(), None)
        );
    }

    #[test]
    fn what_no_node_can_be_reached_at_is_refused() {
        for text in [
            "127.0.0.1:51820",
            "[ff02::1]:51820",
            "[fe80::1]:1",
            "224.0.0.9:51820",
            "[::ffff:192.0.2.1]:51820",
        ] {
            assert!(matches!(EndpointSpec::parse(text), Err(EndpointError::Unroutable(_))), "{text}");
        }
        for text in ["192.0.2.7:0", "192.0.2.7:65536", "[2001:db8::7]:x", "a:b:c"] {
            assert_eq!(EndpointSpec::parse(text), Err(EndpointError::Port), "{text}");
        }
        let long = "x".repeat(10_000);
        for text in
            ["", " ", "[2001:db8::7", "[2001:db8::7]51820", "a..b", "-a:1", "1.2.3", "a b:1", long.as_str()]
        {
            assert_eq!(EndpointSpec::parse(text), Err(EndpointError::Malformed), "{text}");
        }
    }
}
