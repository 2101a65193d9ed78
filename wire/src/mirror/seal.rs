//! Sealed chunks: plain bytes in, something that relays may hold without reading it out, and back.
//!
//! A chunk of at most [`limits::CHUNK_BYTES`] is compressed when that pays and encrypted under a key of its own:
//!
//! ```text
//! sealed = header ‖ iv ‖ AES-256-GCM(key, nonce 0, aad = header ‖ session id, bytes)
//! header = version (1) ‖ flags (bit 0: zstd) ‖ epoch u32 le ‖ plain length u32 le
//! iv     = BLAKE3-keyed(k_iv, header ‖ session id ‖ BLAKE3(bytes))      key = BLAKE3-keyed(k_seal, iv)
//! sid    = BLAKE3(sealed)
//! ```
//!
//! where *bytes* is what is encrypted, after compression. Equal chunks seal to equal bytes inside a session and epoch, and to unrelated ones outside it. A key never encrypts two
//! different things, because it comes from all that it encrypts; so the nonce may be constant. The sid commits to iv and epoch, and these to the key, so there is one way to open a chunk.
//!
//! [`Sealed`] is the proof that bytes belong to their sid: it only comes from [`Sealer::seal`] and [`Sealed::check`], so nobody verifies twice or forgets to.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use ring::aead;
use zeroize::{Zeroize as _, Zeroizing};

pub use super::entry::Sid;
use crate::{id::SessionId, limits};

/// The format that this build writes, and the only one it reads.
const VERSION: u8 = 1;
/// The bytes were compressed.
const ZSTD: u8 = 1;
const HEADER_BYTES: usize = 1 + 1 + 4 + 4;
const IV_BYTES: usize = 32;
/// Where what is encrypted begins.
const BODY: usize = HEADER_BYTES + IV_BYTES;
const TAG_BYTES: usize = 16;
/// What sealing adds to a chunk.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + IV_BYTES + TAG_BYTES;
/// zstd's levels for chunks up to [`SMALL_BYTES`], and for larger ones, where the next level costs twice the time for two percent. What a chunk is sealed with depends on its bytes
/// alone, so equal bytes are equal chunks.
const LEVELS: [i32; 2] = [3, 2];
const SMALL_BYTES: usize = 128 * 1024;
/// Bytes that are looked at to see whether compression is worth trying. It is not when each value comes about equally often: the sum of the squares of how often is 69,632 for noise, and
/// above this in 1 of 10 million samples of it.
const SAMPLE: usize = 4096;
const NOISE: u32 = 71_500;
/// Compressed chunks are kept when they are below this share of the plain ones.
const WORTH_PERCENT: usize = 95;

/// Why a chunk cannot be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Nothing, or more than a chunk may hold.
    #[error("a chunk of {0} bytes; it has to be 1 to {limit}", limit = limits::CHUNK_BYTES)]
    Size(usize),
    /// No epoch's key is known yet.
    #[error("no key to seal with")]
    NoKey,
}

/// Why a sealed chunk does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not the format, or of a later version.
    #[error("not a sealed chunk of this version")]
    Malformed,
    /// Sealed in an epoch whose key is not known here.
    #[error("sealed in epoch {0}, whose key is not known here")]
    UnknownEpoch(u32),
    /// Sealed for another session or under another key, or changed.
    #[error("a sealed chunk that was changed, or is another session's")]
    Forged,
    /// It is authentic, and does not hold what its header says: its author's fault.
    #[error("a sealed chunk whose contents are not what its header says")]
    Inconsistent,
}

/// A sealed chunk whose bytes were checked against its sid.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    sid: Sid,
    bytes: Bytes,
}

impl Sealed {
    /// The bytes as a sealed chunk, when they are the ones that `sid` names and no larger than one can be.
    pub fn check(sid: Sid, bytes: Bytes) -> Option<Self> {
        let plausible = (OVERHEAD_BYTES..=limits::SEALED_CHUNK_BYTES).contains(&bytes.len());
        (plausible && *blake3::hash(&bytes).as_bytes() == sid.0).then_some(Self { sid, bytes })
    }

    /// Its name.
    pub fn sid(&self) -> Sid {
        self.sid
    }

    /// The sealed bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The sealed bytes, for whoever needs the chunk no more.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({:?}, {} bytes)", self.sid, self.bytes.len())
    }
}

/// The keys of one epoch of a session.
struct EpochKeys {
    iv: [u8; 32],
    seal: [u8; 32],
}

impl Drop for EpochKeys {
    fn drop(&mut self) {
        self.iv.zeroize();
        self.seal.zeroize();
    }
}

/// A session's content keys, by epoch. What is written is sealed in the latest one.
pub struct Keys {
    session: SessionId,
    epochs: BTreeMap<u32, EpochKeys>,
}

impl Keys {
    /// No keys yet.
    pub fn new(session: SessionId) -> Self {
        Self { session, epochs: BTreeMap::new() }
    }

    /// Whose keys.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Adds the key of an epoch.
    pub fn insert(&mut self, epoch: u32, key: &[u8; 32]) {
        let iv = blake3::derive_key("cortex-mesh/v1/chunk iv", key);
        let seal = blake3::derive_key("cortex-mesh/v1/chunk seal", key);
        self.epochs.insert(epoch, EpochKeys { iv, seal });
    }

    /// The epoch that is written in.
    pub fn epoch(&self) -> Option<u32> {
        self.epochs.keys().next_back().copied()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("session", &self.session).field("epochs", &self.epochs.keys()).finish_non_exhaustive()
    }
}

/// What comes before the iv, and is authenticated with the bytes.
#[derive(Clone, Copy)]
struct Header {
    flags: u8,
    epoch: u32,
    plain_len: u32,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = VERSION;
        out[1] = self.flags;
        out[2..6].copy_from_slice(&self.epoch.to_le_bytes());
        out[6..10].copy_from_slice(&self.plain_len.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let header: [u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let [version, flags, e0, e1, e2, e3, l0, l1, l2, l3] = header;
        let plain_len = u32::from_le_bytes([l0, l1, l2, l3]);
        let fits = version == VERSION && flags & !ZSTD == 0 && (1..=limits::CHUNK_BYTES).contains(&(plain_len as usize));
        fits.then_some(Self { flags, epoch: u32::from_le_bytes([e0, e1, e2, e3]), plain_len })
    }

    /// Authenticated with the bytes: the header, and which session they belong to.
    fn aad(self, session: &SessionId) -> [u8; HEADER_BYTES + 16] {
        let mut out = [0; HEADER_BYTES + 16];
        out[..HEADER_BYTES].copy_from_slice(&self.encode());
        out[HEADER_BYTES..].copy_from_slice(session.as_bytes());
        out
    }
}

impl EpochKeys {
    /// `hash`: BLAKE3 of what is encrypted.
    fn iv(&self, aad: &[u8], hash: &[u8; 32]) -> [u8; IV_BYTES] {
        *blake3::Hasher::new_keyed(&self.iv).update(aad).update(hash).finalize().as_bytes()
    }

    fn cipher(&self, iv: &[u8; IV_BYTES]) -> Option<aead::LessSafeKey> {
        let key = Zeroizing::new(*blake3::keyed_hash(&self.seal, iv).as_bytes());
        aead::UnboundKey::new(&aead::AES_256_GCM, &key[..]).ok().map(aead::LessSafeKey::new)
    }
}

/// Each key is used for one message, so there is one nonce.
fn nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

/// Seals chunks. Keeps what the compressor needs between them: one per worker.
pub struct Sealer {
    keys: Arc<Keys>,
    compressors: [Option<zstd::bulk::Compressor<'static>>; 2],
    compressed: Vec<u8>,
}

impl Sealer {
    /// A sealer in the latest epoch of `keys`.
    pub fn new(keys: Arc<Keys>) -> Self {
        // Without a compressor (no memory for one) chunks are sealed as they are.
        Self { keys, compressors: LEVELS.map(|level| zstd::bulk::Compressor::new(level).ok()), compressed: Vec::new() }
    }

    /// Seals 1 to [`limits::CHUNK_BYTES`] bytes.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&mut self, plain: &[u8]) -> Result<Sealed, SealError> {
        self.seal_draft(Draft::new(plain))
    }

    /// Seals a chunk where it lies.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal_draft(&mut self, Draft { bytes: mut out, mut hash }: Draft) -> Result<Sealed, SealError> {
        let length = out.len().saturating_sub(BODY);
        let size = SealError::Size(length);
        if !(1..=limits::CHUNK_BYTES).contains(&length) {
            return Err(size);
        }
        let plain_len = u32::try_from(length).map_err(|_| size)?;
        let (epoch, keys) = self.keys.epochs.last_key_value().ok_or(SealError::NoKey)?;
        let mut flags = 0;
        if !is_noise(&out[BODY..]) {
            // A destination of just the size that pays: the compressor gives up as soon as it does not.
            self.compressed.resize(length * WORTH_PERCENT / 100, 0);
            let compressor = self.compressors[usize::from(length > SMALL_BYTES)].as_mut();
            if let Some(shorter) = compressor.and_then(|zstd| zstd.compress_to_buffer(&out[BODY..], &mut self.compressed[..]).ok()) {
                // What compresses well would hold on to memory it does not use.
                let mut smaller = Vec::with_capacity(OVERHEAD_BYTES + shorter);
                smaller.resize(BODY, 0);
                smaller.extend_from_slice(&self.compressed[..shorter]);
                (out, flags, hash) = (smaller, ZSTD, None);
            }
        }
        let header = Header { flags, epoch: *epoch, plain_len };
        let aad = header.aad(&self.keys.session);
        let iv = keys.iv(&aad, &hash.unwrap_or_else(|| *blake3::hash(&out[BODY..]).as_bytes()));
        let cipher = keys.cipher(&iv).ok_or(size)?;
        let tag = cipher.seal_in_place_separate_tag(nonce(), aead::Aad::from(&aad), &mut out[BODY..]).map_err(|_| size)?;
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        out[HEADER_BYTES..BODY].copy_from_slice(&iv);
        out.extend_from_slice(tag.as_ref());
        let bytes = Bytes::from(out);
        Ok(Sealed { sid: Sid(*blake3::hash(&bytes).as_bytes()), bytes })
    }
}

/// A chunk with room around it for what sealing adds.
#[derive(Debug)]
pub struct Draft {
    bytes: Vec<u8>,
    /// BLAKE3 of the chunk, when somebody knows it.
    hash: Option<[u8; 32]>,
}

impl Draft {
    /// A copy of the chunk.
    pub fn new(plain: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(OVERHEAD_BYTES + plain.len());
        bytes.resize(BODY, 0);
        bytes.extend_from_slice(plain);
        Self { bytes, hash: None }
    }

    /// A copy of a chunk with this BLAKE3, which then is not computed again.
    pub fn hashed(plain: &[u8], hash: [u8; 32]) -> Self {
        Self { hash: Some(hash), ..Self::new(plain) }
    }
}

/// Whether bytes look like noise (encrypted, or compressed already), which no compressor makes shorter: by how often each byte comes in a sample from all over.
fn is_noise(bytes: &[u8]) -> bool {
    if bytes.len() < SAMPLE {
        return false;
    }
    // Sixteen pieces of neighbours, evenly spread.
    let (pieces, piece) = (16, SAMPLE / 16);
    let mut counts = [0_u32; 256];
    for at in 0..pieces {
        let from = (bytes.len() - piece) * at / (pieces - 1);
        bytes[from..from + piece].iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    }
    counts.iter().map(|count| count * count).sum::<u32>() < NOISE
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// Opens sealed chunks. Keeps what the decompressor needs between them: one per worker.
pub struct Opener {
    keys: Arc<Keys>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
}

impl Opener {
    /// An opener for every epoch of `keys`.
    pub fn new(keys: Arc<Keys>) -> Self {
        Self { keys, decompressor: zstd::bulk::Decompressor::new().ok() }
    }

    /// The plain bytes: exactly as many as were sealed, at most [`limits::CHUNK_BYTES`]. Decrypts in place when nobody else holds the sealed bytes.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&mut self, sealed: Sealed) -> Result<Bytes, OpenError> {
        let header = Header::decode(&sealed.bytes).ok_or(OpenError::Malformed)?;
        let keys = self.keys.epochs.get(&header.epoch).ok_or(OpenError::UnknownEpoch(header.epoch))?;
        let aad = header.aad(&self.keys.session);
        let mut bytes = sealed.bytes.try_into_mut().unwrap_or_else(|shared| shared[..].into());
        let mut body = bytes.split_off(HEADER_BYTES);
        let iv = body.split_to(IV_BYTES.min(body.len()));
        let iv: [u8; IV_BYTES] = iv[..].try_into().map_err(|_| OpenError::Malformed)?;
        let cipher = keys.cipher(&iv).ok_or(OpenError::Malformed)?;
        let len = cipher.open_in_place(nonce(), aead::Aad::from(&aad), &mut body).map_err(|_| OpenError::Forged)?.len();
        body.truncate(len);
        let plain_len = header.plain_len as usize;
        if header.flags & ZSTD == 0 {
            return if len == plain_len { Ok(body.freeze()) } else { Err(OpenError::Inconsistent) };
        }
        let mut plain = vec![0; plain_len];
        let zstd = self.decompressor.as_mut().ok_or(OpenError::Inconsistent)?;
        match zstd.decompress_to_buffer(&body, &mut plain[..]) {
            Ok(len) if len == plain_len => Ok(plain.into()),
            _ => Err(OpenError::Inconsistent),
        }
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("keys", &self.keys).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(session: u8, epochs: &[u32]) -> Arc<Keys> {
        let mut keys = Keys::new(SessionId(uuid::Uuid::from_bytes([session; 16])));
        for epoch in epochs {
            keys.insert(*epoch, &[epoch.to_le_bytes()[0] + 1; 32]);
        }
        Arc::new(keys)
    }

    fn seal(keys: &Arc<Keys>, plain: &[u8]) -> Sealed {
        Sealer::new(keys.clone()).seal(plain).unwrap()
    }

    fn open(keys: &Arc<Keys>, sealed: Sealed) -> Result<Bytes, OpenError> {
        Opener::new(keys.clone()).open(sealed)
    }

    /// As a forger would name it: the sid fits the bytes.
    fn named(bytes: Vec<u8>) -> Sealed {
        let sid = Sid(*blake3::hash(&bytes).as_bytes());
        Sealed { sid, bytes: bytes.into() }
    }

    /// Texts that compress, and noise that does not.
    fn plain() -> impl Strategy<Value = Vec<u8>> {
        let noise = proptest::collection::vec(any::<u8>(), 1..2_000);
        let text = (proptest::collection::vec(any::<u8>(), 1..20), 1usize..200).prop_map(|(word, times)| word.repeat(times));
        prop_oneof![noise, text]
    }

    #[test]
    fn noise_is_known_and_nothing_else_is_taken_for_it() {
        let mut noise = vec![0; limits::CHUNK_BYTES];
        let mut reader = blake3::Hasher::new().finalize_xof();
        for length in [SAMPLE, SAMPLE + 1, 65_536, limits::CHUNK_BYTES] {
            reader.fill(&mut noise);
            assert!(is_noise(&noise[..length]), "{length}");
        }
        assert!(!is_noise(&noise[..SAMPLE - 1]), "too few to know");
        let base64: Vec<u8> = noise.iter().map(|byte| b'0' + byte % 64).collect();
        assert!(!is_noise(&base64));
        noise[..100_000].fill(b' ');
        assert!(!is_noise(&noise), "half of it is worth it");
        let text: Vec<u8> = include_bytes!("seal.rs").repeat(3);
        assert!(!is_noise(&text));
    }

    proptest! {
        #[test]
        fn a_hash_that_is_known_saves_work_and_changes_nothing(plain in plain()) {
            let keys = keys(1, &[4]);
            let hashed = Draft::hashed(&plain, *blake3::hash(&plain).as_bytes());
            prop_assert_eq!(Sealer::new(keys.clone()).seal_draft(hashed).unwrap(), seal(&keys, &plain));
        }

        #[test]
        fn what_was_sealed_opens_to_itself_and_seals_the_same_again(plain in plain()) {
            let keys = keys(1, &[4]);
            let mut sealer = Sealer::new(keys.clone());
            let sealed = sealer.seal(&plain).unwrap();
            sealer.seal(b"something else in between").unwrap();
            prop_assert_eq!(&sealer.seal(&plain).unwrap(), &sealed);
            prop_assert_eq!(&seal(&keys, &plain), &sealed);
            prop_assert_eq!(Sealed::check(sealed.sid(), sealed.bytes().clone()), Some(sealed.clone()));
            prop_assert!(sealed.bytes().len() <= plain.len() + OVERHEAD_BYTES);
            prop_assert_eq!(open(&keys, sealed).unwrap(), plain);
        }

        #[test]
        fn a_flipped_bit_is_refused_by_the_name_and_by_the_keys(plain in plain(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let keys = keys(1, &[0, 4]);
            let sealed = seal(&keys, &plain);
            let mut bytes = sealed.bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Sealed::check(sealed.sid(), bytes.clone().into()), None);
            prop_assert!(open(&keys, named(bytes)).is_err());
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(&keys(1, &[0]), named(bytes)).is_err());
        }

        #[test]
        fn a_sealed_chunk_that_was_cut_off_is_refused(plain in plain(), at in any::<prop::sample::Index>()) {
            let keys = keys(1, &[4]);
            let sealed = seal(&keys, &plain).into_bytes();
            let cut = sealed.slice(..at.index(sealed.len()));
            prop_assert!(open(&keys, named(cut.to_vec())).is_err());
        }
    }

    #[test]
    fn another_session_or_epoch_cannot_open_it_and_does_not_see_what_is_equal() {
        let plain = b"the same in both".repeat(9);
        let (ours, theirs, later) = (keys(1, &[4]), keys(2, &[4]), keys(1, &[4, 5]));
        let sealed = seal(&ours, &plain);
        assert_eq!(open(&theirs, sealed.clone()), Err(OpenError::Forged));
        assert_eq!(open(&keys(1, &[5]), sealed.clone()), Err(OpenError::UnknownEpoch(4)));
        assert_eq!(open(&later, sealed.clone()).unwrap(), plain);
        assert_ne!(seal(&theirs, &plain).sid(), sealed.sid());
        assert_ne!(seal(&later, &plain).sid(), sealed.sid());
    }

    #[test]
    fn what_compresses_is_small_and_what_does_not_is_as_it_was() {
        let keys = keys(1, &[0]);
        assert!(seal(&keys, &vec![b'x'; limits::CHUNK_BYTES]).bytes().len() < 200);
        let mut noise = vec![0; limits::CHUNK_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let sealed = seal(&keys, &noise);
        assert_eq!(sealed.bytes().len(), noise.len() + OVERHEAD_BYTES);
        assert!(sealed.bytes().len() <= limits::SEALED_CHUNK_BYTES);
        assert_eq!(open(&keys, sealed).unwrap(), noise);
    }

    #[test]
    fn nothing_and_too_much_are_not_chunks() {
        let mut sealer = Sealer::new(keys(1, &[0]));
        assert_eq!(sealer.seal(&[]), Err(SealError::Size(0)));
        assert_eq!(sealer.seal(&vec![0; limits::CHUNK_BYTES + 1]), Err(SealError::Size(limits::CHUNK_BYTES + 1)));
        assert_eq!(Sealer::new(keys(1, &[])).seal(b"x"), Err(SealError::NoKey));
    }

    /// Sealed properly by somebody who has the keys, with a header that lies.
    fn lying(keys: &Keys, flags: u8, plain_len: u32, bytes: &[u8]) -> Sealed {
        let (epoch, epoch_keys) = keys.epochs.last_key_value().unwrap();
        let header = Header { flags, epoch: *epoch, plain_len };
        let aad = header.aad(&keys.session);
        let iv = epoch_keys.iv(&aad, blake3::hash(bytes).as_bytes());
        let mut body = bytes.to_vec();
        epoch_keys.cipher(&iv).unwrap().seal_in_place_append_tag(nonce(), aead::Aad::from(&aad), &mut body).unwrap();
        named([&header.encode()[..], &iv[..], &body].concat())
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let keys = keys(1, &[0]);
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let most = u32::try_from(limits::CHUNK_BYTES).unwrap();
        assert_eq!(open(&keys, lying(&keys, ZSTD, most, &bomb)), Err(OpenError::Inconsistent));
        assert_eq!(open(&keys, lying(&keys, ZSTD, most + 1, &bomb)), Err(OpenError::Malformed));
        assert_eq!(open(&keys, lying(&keys, ZSTD, u32::MAX, &bomb)), Err(OpenError::Malformed));
        assert_eq!(open(&keys, lying(&keys, 0, 7, b"eleven byte")), Err(OpenError::Inconsistent));
        assert_eq!(open(&keys, lying(&keys, 2, 11, b"eleven byte")), Err(OpenError::Malformed));
        assert_eq!(open(&keys, lying(&keys, ZSTD, 11, b"not zstd at all")), Err(OpenError::Inconsistent));
        assert_eq!(open(&keys, lying(&keys, 0, 11, b"eleven byte")).unwrap(), &b"eleven byte"[..]);
    }
}
