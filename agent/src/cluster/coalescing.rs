//! Thousands of Nodes' heartbeats come one by one. Where they come fast the connection rests a moment after each read, and
//! what comes meanwhile is read at once: waking up for a heartbeat costs more than reading it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// How long it rests, so how long a change waits at most: one that comes less than twice this after something else.
const REST: Duration = Duration::from_millis(50);

/// A TCP connection that wakes its reader once in [`REST`] at most.
pub(super) struct Coalescing {
    stream: Stream,
    /// Whether something was read since this last waited.
    has_read: bool,
    /// When it last had read all there was.
    emptied: Option<Instant>,
}

enum Stream {
    Awake(TcpStream),
    /// Unknown to the runtime's poll, which else wakes up for each segment, whether anybody waits for it or not.
    Resting(std::net::TcpStream, Pin<Box<Sleep>>),
    /// It could not be handed over.
    Lost,
}

impl Coalescing {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream: Stream::Awake(stream), has_read: false, emptied: None }
    }

    /// Whether there was something to read, and little time before it.
    fn is_fast(&mut self) -> bool {
        if !std::mem::take(&mut self.has_read) {
            return false;
        }
        let now = Instant::now();
        self.emptied.replace(now).is_some_and(|last| now.duration_since(last) < 2 * REST)
    }

    fn rest(&mut self) -> io::Result<()> {
        self.stream = match std::mem::replace(&mut self.stream, Stream::Lost) {
            Stream::Awake(stream) => Stream::Resting(stream.into_std()?, Box::pin(sleep(REST))),
            other => other,
        };
        Ok(())
    }

    fn awake(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream = match std::mem::replace(&mut self.stream, Stream::Lost) {
            Stream::Resting(stream, _) => Stream::Awake(TcpStream::from_std(stream)?),
            other => other,
        };
        match &mut self.stream {
            Stream::Awake(stream) => Ok(Pin::new(stream)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Coalescing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Stream::Resting(_, rest) = &mut self.stream {
                ready!(rest.as_mut().poll(cx));
            }
            match self.awake()?.poll_read(cx, buf) {
                Poll::Pending => match self.is_fast() {
                    true => self.rest()?,
                    false => return Poll::Pending,
                },
                Poll::Ready(result) => {
                    self.has_read = true;
                    return Poll::Ready(result);
                }
            }
        }
    }
}

/// Who asks something waits for the answer: a write ends the rest.
impl AsyncWrite for Coalescing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.awake()?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TCP keeps nothing back
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.awake()?.poll_shutdown(cx)
    }
}

impl Connection for Coalescing {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn pair() -> (Coalescing, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Coalescing::new(near.unwrap()), far.unwrap().0)
    }

    /// Reads one byte as often as there is one.
    async fn read(stream: &mut Coalescing, count: u8) -> Vec<u8> {
        let mut read = Vec::new();
        for _ in 0..count {
            read.push(stream.read_u8().await.unwrap());
        }
        read
    }

    #[tokio::test]
    async fn what_comes_fast_is_read_whole_and_in_order() {
        let (mut near, mut far) = pair().await;
        for round in 0..3 {
            let written: Vec<u8> = (0..100).map(|n| n + round).collect();
            let write = async {
                for byte in &written {
                    far.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let (read, ()) = tokio::join!(read(&mut near, 100), write);
            assert_eq!(read, written);
        }
        drop(far);
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0, "its end is seen");
    }

    #[tokio::test]
    async fn one_that_rests_is_unknown_to_the_poll_and_a_write_wakes_it() {
        let (mut near, mut far) = pair().await;
        for byte in 0..2 {
            far.write_all(&[byte]).await.unwrap();
            near.read_u8().await.unwrap();
            // nothing is there: after the second it rests
            assert!(futures::poll!(std::pin::pin!(near.read_u8())).is_pending());
        }
        assert!(matches!(near.stream, Stream::Resting(..)));
        near.write_all(b"?").await.unwrap();
        assert!(matches!(near.stream, Stream::Awake(_)));
        assert_eq!(far.read_u8().await.unwrap(), b'?');
        far.write_all(b"!").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'!');
    }
}
