//! Authorities like a cluster's, and what node-api shows of them at its port with TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Lab, run};

/// Where node-api listens by TLS, once a certificate is there: `Lab::certify`.
pub const TLS_PORT: u16 = 6444;
/// The file with that certificate and its key, in the lab's folder.
const IDENTITY: &str = "node-api.pem";

pub(super) fn listen_by_tls(node_api: &mut Command, folder: &Path) {
    node_api.arg("--tls-listen").arg(format!("[::]:{TLS_PORT}"));
    node_api.arg("--tls-identity").arg(folder.join(IDENTITY));
}

/// An authority of its own key. All have one name, as those of kubeadm have.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    certificate: String,
}

impl Authority {
    /// Its certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }
}

impl Lab {
    /// Makes an authority; `name` is that of its folder.
    ///
    /// # Errors
    /// There is no openssl.
    pub fn authority(&self, name: &str) -> Result<Authority> {
        let folder = self.folder().join(format!("authority-{name}"));
        fs::create_dir(&folder)?;
        let certificate = folder.join("ca.crt");
        let mut make = request("/CN=kubernetes");
        make.args(["-addext", "keyUsage=critical,keyCertSign,digitalSignature"]);
        run(make.arg("-keyout").arg(folder.join("ca.key")).arg("-out").arg(&certificate))?;
        Ok(Authority { certificate: fs::read_to_string(certificate)?, folder })
    }

    /// Has node-api show a certificate of this authority to each connection from now on. Open ones stay as they are.
    ///
    /// # Errors
    /// As `authority`.
    pub fn certify(&self, authority: &Authority) -> Result<()> {
        let [certificate, key] = ["server.crt", "server.key"].map(|file| authority.folder.join(file));
        let mut sign = request("/CN=kube-apiserver");
        sign.arg("-CA")
            .arg(authority.folder.join("ca.crt"))
            .arg("-CAkey")
            .arg(authority.folder.join("ca.key"));
        sign.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        sign.args(["-addext", "subjectAltName=IP:172.30.0.1,IP:fd00:30::1"]);
        run(sign.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
        let identity = fs::read_to_string(certificate)? + &fs::read_to_string(key)?;
        let (new, shown) = (authority.folder.join("identity.pem"), self.folder().join(IDENTITY));
        fs::write(&new, identity)?;
        fs::rename(new, shown).context("show another certificate")
    }
}

/// openssl's making of a certificate and its key.
fn request(subject: &str) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    command.args(["-days", "2", "-subj", subject]);
    command
}
