//! The clients' door with TLS. What it shows is read for each connection: a test rotates the certificate by writing
//! another.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// A client takes milliseconds; one that says nothing must not hold up the others for long.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// A listener whose connections are encrypted.
pub struct TlsListener {
    tcp: TcpListener,
    identity: PathBuf,
}

impl TlsListener {
    /// `identity` is a PEM file with a certificate and its key; it need not be there yet.
    #[must_use]
    pub fn new(tcp: TcpListener, identity: PathBuf) -> Self {
        Self { tcp, identity }
    }

    async fn shake_hands(&self) -> Result<(TlsStream<TcpStream>, SocketAddr)> {
        let (stream, client) = self.tcp.accept().await?;
        let acceptor = TlsAcceptor::from(Arc::new(read(&self.identity)?));
        let stream = timeout(HANDSHAKE, acceptor.accept(stream)).await?;
        Ok((stream.with_context(|| format!("{client}"))?, client))
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.shake_hands().await {
                Ok(connection) => return connection,
                Err(error) => eprintln!("no TLS: {error:#}"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

fn read(identity: &Path) -> Result<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(identity);
    let certificate = certificate.with_context(|| format!("the certificate in {}", identity.display()))?;
    let key = PrivateKeyDer::from_pem_file(identity);
    let key = key.with_context(|| format!("the key in {}", identity.display()))?;
    Ok(ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?)
}
