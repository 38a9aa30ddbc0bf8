//! Who holds an address: one interface of one container.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// One attachment, by the two names that the CNI gives it. Written as `CONTAINER_ID:IFNAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    container_id: String,
    ifname: String,
}

/// Longest container ID: with its interface it must fit a file name (255 bytes) and a link's alias (255 bytes).
const CONTAINER_ID_MAX: usize = 220;
/// Longest name of a link, `IFNAMSIZ` of linux/if.h less the closing NUL.
const IFNAME_MAX: usize = 15;

/// A name that can't be a container ID or an interface.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HolderError {
    /// Not as the CNI specification's "Parameters" section wants a container ID.
    #[error(
        "container ID {0:?} is not 1 to {CONTAINER_ID_MAX} letters, digits, '_', '.' or '-' that begin with a letter or digit"
    )]
    ContainerId(String),
    /// Not a name that Linux takes for a link.
    #[error("interface name {0:?} is not 1 to {IFNAME_MAX} visible ASCII characters without '/' and ':'")]
    IfName(String),
    /// The separator is missing.
    #[error("{0:?} is not CONTAINER_ID:IFNAME")]
    Separator(String),
}

impl Holder {
    /// Checks both names by the CNI specification 1.1.0 (section 2, "Parameters") and `dev_valid_name` of Linux.
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, HolderError> {
        let id_byte = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let id_begins = container_id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if !id_begins || container_id.len() > CONTAINER_ID_MAX || !container_id.bytes().all(id_byte) {
            return Err(HolderError::ContainerId(container_id.to_owned()));
        }
        let if_byte = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
        if matches!(ifname, "" | "." | "..") || ifname.len() > IFNAME_MAX || !ifname.bytes().all(if_byte) {
            return Err(HolderError::IfName(ifname.to_owned()));
        }
        Ok(Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }

    /// The container's ID, as the runtime gave it.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface's name inside the container.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.container_id, self.ifname)
    }
}

impl FromStr for Holder {
    type Err = HolderError;

    fn from_str(text: &str) -> Result<Self, HolderError> {
        let (container_id, ifname) =
            text.split_once(':').ok_or_else(|| HolderError::Separator(text.to_owned()))?;
        Self::new(container_id, ifname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_or_too_long_are_refused() {
        for id in ["", ".", "..", "../x", "a/b", "a b", "-a", "a:b", "ä", &"a".repeat(221)] {
            assert!(matches!(Holder::new(id, "eth0"), Err(HolderError::ContainerId(_))), "{id:?}");
        }
        for ifname in ["", ".", "..", "a/b", "a:b", "a b", "a\n", "ä", "0123456789abcdef"] {
            assert!(matches!(Holder::new("a", ifname), Err(HolderError::IfName(_))), "{ifname:?}");
        }
    }

    #[test]
    fn text_and_back_is_the_same_holder() {
        let holder = Holder::new("a.b-c_D9", "eth0").unwrap();
        assert_eq!(holder.to_string().parse(), Ok(holder));
        assert!("eth0".parse::<Holder>().is_err());
    }
}
