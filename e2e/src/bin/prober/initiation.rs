//! A handshake initiation of another time: the first message of Noise IKpsk2 as the WireGuard paper writes it (section 5.4.2),
//! by whoever holds a node's key.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use blake2::digest::Mac;
use blake2::digest::consts::U16;
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use hmac::SimpleHmac;
use x25519_dalek::{PublicKey, StaticSecret};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// TAI64's label of the Unix epoch, leap seconds of then included.
const EPOCH: u64 = 0x4000_0000_0000_000a;
const RESPONSE: u8 = 2;

/// A key, as `wg` prints it.
pub fn key(text: &str) -> Result<[u8; 32]> {
    let bytes = BASE64_STANDARD.decode(text.trim()).context("a key is base64")?;
    <[u8; 32]>::try_from(bytes).ok().context("a key has 32 bytes")
}

/// Sends an initiation that is so far ahead of this machine's clock, until it is answered.
pub fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    own: [u8; 32],
    peer: [u8; 32],
    ahead: Duration,
) -> Result<()> {
    let own = StaticSecret::from(own);
    let peer = PublicKey::from(peer);
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    for _ in 0..5 {
        let time = SystemTime::now().duration_since(UNIX_EPOCH)? + ahead;
        socket.send_to(&message(&own, &peer, time)?, to).with_context(|| format!("send to {to}"))?;
        let mut answer = [0; 256];
        if socket.recv_from(&mut answer).is_ok() {
            ensure!(answer.first() == Some(&RESPONSE), "an answer of type {:?}", answer.first());
            return Ok(());
        }
    }
    anyhow::bail!("{to} does not answer")
}

fn message(own: &StaticSecret, peer: &PublicKey, time: Duration) -> Result<Vec<u8>> {
    let ephemeral = StaticSecret::from(std::array::from_fn(|_| fastrand::u8(..)));
    let (own_public, ephemeral_public) = (PublicKey::from(own), PublicKey::from(&ephemeral));
    let chain = hash(&[CONSTRUCTION]);
    let transcript = hash(&[&hash(&[&chain, IDENTIFIER]), peer.as_bytes()]);
    let [chain, _] = derive(&chain, ephemeral_public.as_bytes())?;
    let transcript = hash(&[&transcript, ephemeral_public.as_bytes()]);
    let [chain, secret] = derive(&chain, ephemeral.diffie_hellman(peer).as_bytes())?;
    let sealed_key = seal(&secret, own_public.as_bytes(), &transcript)?;
    let transcript = hash(&[&transcript, &sealed_key]);
    let [_, secret] = derive(&chain, own.diffie_hellman(peer).as_bytes())?;
    let mut stamp = (EPOCH + time.as_secs()).to_be_bytes().to_vec();
    stamp.extend(time.subsec_nanos().to_be_bytes());
    let sealed_stamp = seal(&secret, &stamp, &transcript)?;

    let mut message = vec![1, 0, 0, 0];
    message.extend(fastrand::u32(..).to_le_bytes());
    message.extend(ephemeral_public.as_bytes());
    message.extend(sealed_key);
    message.extend(sealed_stamp);
    let mac_key = hash(&[b"mac1----", peer.as_bytes()]);
    let mac = <Blake2sMac<U16> as Mac>::new_from_slice(&mac_key).context("a key of 32 bytes")?;
    message.extend(mac.chain_update(&message).finalize().into_bytes());
    message.extend([0; 16]); // no cookie
    Ok(message)
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Blake2s256::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

/// The first two keys of HKDF.
fn derive(chain: &[u8], input: &[u8]) -> Result<[[u8; 32]; 2]> {
    let secret = authenticate(chain, &[input])?;
    let first = authenticate(&secret, &[&[1]])?;
    Ok([first, authenticate(&secret, &[&first, &[2]])?])
}

fn authenticate(key: &[u8], parts: &[&[u8]]) -> Result<[u8; 32]> {
    let mut mac = <SimpleHmac<Blake2s256> as Mac>::new_from_slice(key).context("any key will do")?;
    parts.iter().for_each(|part| mac.update(part));
    Ok(mac.finalize().into_bytes().into())
}

fn seal(key: &[u8; 32], plain: &[u8], transcript: &[u8]) -> Result<Vec<u8>> {
    let payload = Payload { msg: plain, aad: transcript };
    let sealed = ChaCha20Poly1305::new(key.into()).encrypt(&[0; 12].into(), payload);
    sealed.ok().context("sealing does not fail")
}
