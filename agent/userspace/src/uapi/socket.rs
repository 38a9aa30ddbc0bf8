//! The unix socket: who may have it, and the bytes that go over it.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use zeroize::Zeroizing;

use super::{Call, errno_line, request::Request};
use crate::error::DeviceError;

/// Where `wg` looks for user-space devices (wireguard-tools, ipc-uapi-unix.h).
const FOLDER: &str = "/var/run/wireguard";

/// Largest request, in bytes: some 100,000 peers. What is larger is no request.
const MAX_REQUEST: u64 = 32 << 20;

/// The listening socket. Its file goes when this is dropped.
pub(crate) struct UapiSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl Drop for UapiSocket {
    fn drop(&mut self) {
        // The listener is still open here, so nobody took this path for that of a dead process.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket file not removed");
        }
    }
}

impl UapiSocket {
    /// Where the device of this name listens: `/var/run/wireguard/NAME.sock`.
    pub(crate) fn path_of(name: &str) -> PathBuf {
        Path::new(FOLDER).join(format!("{name}.sock"))
    }

    /// Listens where the device of this name does, in the place of a dead process's socket if need
    /// be. Only root may connect.
    pub(crate) async fn bind(name: &str) -> Result<Self, DeviceError> {
        let path = Self::path_of(name);
        match claim(&path) {
            Ok(listener) => Ok(Self { path, listener }),
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                Err(DeviceError::AlreadyRunning { name: name.to_owned(), holder: path.display().to_string() })
            }
            Err(source) => Err(DeviceError::Socket { path, source }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes connections and passes their requests on, until nobody answers them.
    pub(crate) async fn serve(&mut self, requests: mpsc::Sender<Call>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(converse(stream, requests.clone()));
                    }
                    // Out of descriptors: they come back as connections end.
                    Err(error) => {
                        tracing::warn!(%error, "connection to the UAPI socket not taken");
                        connections.join_next().await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = requests.closed() => return,
            }
        }
    }
}

/// Puts a listening socket at `path`, for root alone. AddrInUse where a living process has one there.
pub(crate) fn claim(path: &Path) -> io::Result<UnixListener> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    fs::create_dir_all(folder)?;
    // Two starts at once take turns; the lock goes with the descriptor.
    let folder = File::open(folder)?;
    folder.lock()?;
    match StdUnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::CONNREFUSED)) => {}
        Err(error) => return Err(error),
    }
    // Made aside and renamed: it is never there with another mode, nor missing in between.
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside)?;
    fs::set_permissions(&aside, Permissions::from_mode(0o600))?;
    fs::rename(&aside, path)?;
    Ok(listener)
}

/// One connection: requests and answers in turn, until the other side has enough.
async fn converse(stream: UnixStream, requests: mpsc::Sender<Call>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let answer = match read_request(&mut reader).await {
            Ok(Some(text)) => match Request::parse(&text) {
                Ok(request) => pass_on(request, &requests).await,
                Err(error) => {
                    tracing::warn!(%error, "request on the UAPI socket refused");
                    Some(errno_line(Err(Errno::INVAL)).into())
                }
            },
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "UAPI connection ended");
                let _ = writer.write_all(errno_line(Err(Errno::INVAL)).as_bytes()).await;
                return;
            }
        };
        let Some(answer) = answer else { return };
        if writer.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn pass_on(request: Request, requests: &mpsc::Sender<Call>) -> Option<Zeroizing<String>> {
    let (answer, answered) = oneshot::channel();
    requests.send(Call { request, answer }).await.ok()?;
    answered.await.ok()
}

/// Lines up to a blank one; `None` where the other side closed instead.
async fn read_request(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<Zeroizing<String>>> {
    let mut limited = reader.take(MAX_REQUEST);
    let mut text = Zeroizing::new(Vec::new());
    loop {
        let start = text.len();
        if limited.read_until(b'\n', &mut text).await? == 0 {
            return match limited.limit() {
                0 => Err(io::ErrorKind::FileTooLarge.into()),
                _ => Ok(None),
            };
        }
        if text.get(start..) == Some(b"\n") {
            text.truncate(start);
            // Blank lines between requests mean nothing.
            if start == 0 {
                continue;
            }
            let text = std::str::from_utf8(&text).map_err(io::Error::other)?;
            return Ok(Some(Zeroizing::new(text.to_owned())));
        }
    }
}
