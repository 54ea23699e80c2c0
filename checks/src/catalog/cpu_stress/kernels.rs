//! Computations whose answers are known, one for each unit of a core.
//!
//! Where a standard gives an answer, it is that one. The answers of the floating point and vector units were computed
//! ahead with whole numbers alone, every operation rounded by exact fractions, so no such unit had a part in them. The
//! order of operations is fixed, and Rust neither reorders nor fuses them, so every correct CPU gives the same bits.

use std::hint::black_box;

use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use sha2::{Digest, Sha256};

use crate::host::vector::{VectorUnit, fraction, mixed};

/// A computation and its right answer.
pub(super) struct Known {
    /// The unit of the core that it is for.
    pub(super) unit: &'static str,
    pub(super) compute: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    pub(super) answer: Vec<u8>,
}

/// A computation that begins somewhere else each time; its right answer is the one that most cores give.
pub(super) struct Seeded {
    /// The unit of the core that it is for.
    pub(super) unit: &'static str,
    pub(super) compute: Box<dyn Fn(u64) -> u64 + Send + Sync>,
}

/// The digest of [`float`] from 1.
const FLOAT_FROM_1: u64 = 0xe98a_a14c_c7a4_9468;

/// The digest of every vector unit from 1.
const VECTOR_FROM_1: u64 = 0x4e56_4167_896a_76ad;

/// ISO C++, [rand.predef]: the 10,000th numbers of `mt19937_64` and `minstd_rand`.
const MT19937_64_10000TH: u64 = 9_981_545_732_273_789_042;
const MINSTD_10000TH: u64 = 399_268_537;

/// Steps of the floating point chain.
const FLOAT_STEPS: usize = 4096;

/// All computations with known answers that this CPU has the units for.
pub(super) fn known() -> Vec<Known> {
    let mut all = vec![
        Known {
            unit: "integer",
            compute: Box::new(|| mersenne_twister(5489).to_be_bytes().to_vec()),
            answer: MT19937_64_10000TH.to_be_bytes().to_vec(),
        },
        Known {
            unit: "divider",
            compute: Box::new(|| minimal_standard().to_be_bytes().to_vec()),
            answer: MINSTD_10000TH.to_be_bytes().to_vec(),
        },
        Known {
            unit: "floating point",
            compute: Box::new(|| float(1).to_be_bytes().to_vec()),
            answer: FLOAT_FROM_1.to_be_bytes().to_vec(),
        },
        Known {
            unit: "AES",
            compute: Box::new(aes_vectors),
            answer: hex(AES_ANSWERS),
        },
        Known {
            unit: "SHA-256",
            compute: Box::new(sha256_vectors),
            answer: hex(SHA256_ANSWERS),
        },
    ];
    all.extend(VectorUnit::there().map(|unit| Known {
        unit: unit.name(),
        compute: Box::new(move || unit.digest(1).to_be_bytes().to_vec()),
        answer: VECTOR_FROM_1.to_be_bytes().to_vec(),
    }));
    all
}

/// All computations that begin somewhere else each time.
pub(super) fn seeded() -> Vec<Seeded> {
    let mut all = vec![
        Seeded {
            unit: "integer",
            compute: Box::new(mersenne_twister),
        },
        Seeded {
            unit: "floating point",
            compute: Box::new(float),
        },
        Seeded {
            unit: "AES",
            compute: Box::new(aes_chain),
        },
    ];
    all.extend(VectorUnit::there().map(|unit| Seeded {
        unit: unit.name(),
        compute: Box::new(move |seed| unit.digest(seed)),
    }));
    all
}

/// Units that this CPU lacks, or that stand in software for lack of instructions.
pub(super) fn absent() -> Vec<&'static str> {
    let mut absent: Vec<&'static str> = VectorUnit::absent().collect();
    #[cfg(target_arch = "x86_64")]
    {
        if !std::arch::is_x86_feature_detected!("aes") {
            absent.push("AES instructions (computed without them)");
        }
        if !std::arch::is_x86_feature_detected!("sha") {
            absent.push("SHA instructions (computed without them)");
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        // The crate `aes` takes them if the build says so, see `.cargo/config.toml`.
        if !cfg!(aes_armv8) || !std::arch::is_aarch64_feature_detected!("aes") {
            absent.push("AES instructions (computed without them)");
        }
        if !std::arch::is_aarch64_feature_detected!("sha2") {
            absent.push("SHA instructions (computed without them)");
        }
    }
    absent
}

/// The 10,000th number of the generator of Matsumoto and Nishimura (2004) with these parameters and this seed.
fn mersenne_twister(seed: u64) -> u64 {
    const N: usize = 312;
    const M: usize = 156;
    const UPPER: u64 = 0xFFFF_FFFF_8000_0000;
    let mut state = [0_u64; N];
    state[0] = black_box(seed);
    for i in 1..N {
        let before = state[i - 1] ^ (state[i - 1] >> 62);
        state[i] = 6_364_136_223_846_793_005_u64
            .wrapping_mul(before)
            .wrapping_add(i as u64);
    }
    let mut last = 0;
    for count in 0..10_000 {
        let i = count % N;
        let y = (state[i] & UPPER) | (state[(i + 1) % N] & !UPPER);
        let twist = if y & 1 == 1 { 0xB502_6F5A_A966_19E9 } else { 0 };
        state[i] = state[(i + M) % N] ^ (y >> 1) ^ twist;
        let mut x = state[i];
        x ^= (x >> 29) & 0x5555_5555_5555_5555;
        x ^= (x << 17) & 0x71D6_7FFF_EDA6_0000;
        x ^= (x << 37) & 0xFFF7_EEE0_0000_0000;
        last = x ^ (x >> 43);
    }
    last
}

/// The 10,000th number of `x ← 48271 x mod 2³¹ − 1` from 1. The compiler does not know the modulus, so the core divides.
fn minimal_standard() -> u64 {
    let modulus = black_box(2_147_483_647_u64);
    (0..10_000).fold(black_box(1), |x, _| x * 48_271 % modulus)
}

/// Products, differences, quotients and roots in a chaotic chain, every bit of which enters the digest.
fn float(seed: u64) -> u64 {
    let first = mixed(black_box(seed));
    let (mut x, mut y) = (fraction(first), fraction(mixed(first)));
    let mut digest = 0_u64;
    for _ in 0..FLOAT_STEPS {
        x = 3.99 * x * (1.0 - x);
        y = (x + y).sqrt() / (1.0 + x);
        digest = digest.rotate_left(9) ^ x.to_bits() ^ y.to_bits().rotate_left(32);
    }
    digest
}

/// FIPS 197, appendix C, with keys of 128, 192 and 256 bits; then count 0 of NIST's ECBMCT128 for encryption, in which
/// each of 1,000 blocks is the cipher text of the one before.
const AES_ANSWERS: &str = "69c4e0d86a7b0430d8cdb78070b4c55add\
a97ca4864cdfe06eaf70a0ec0d71918ea2b7ca516745bfeafc49904b496089d7c3ffac9031238650901e157364c386";

fn aes_vectors() -> Vec<u8> {
    let plain = hex(black_box("00112233445566778899aabbccddeeff"));
    let key: Vec<u8> = (0..32).collect();
    let mut answers = Vec::with_capacity(64);
    let mut block = GenericArray::clone_from_slice(&plain);
    Aes128::new(GenericArray::from_slice(&key[..16])).encrypt_block(&mut block);
    answers.extend_from_slice(&block);
    let mut block = GenericArray::clone_from_slice(&plain);
    Aes192::new(GenericArray::from_slice(&key[..24])).encrypt_block(&mut block);
    answers.extend_from_slice(&block);
    let mut block = GenericArray::clone_from_slice(&plain);
    Aes256::new(GenericArray::from_slice(&key)).encrypt_block(&mut block);
    answers.extend_from_slice(&block);
    let monte_carlo = Aes128::new(GenericArray::from_slice(&hex(
        "139a35422f1d61de3c91787fe0507afd",
    )));
    let mut block = GenericArray::clone_from_slice(&hex("b9145a768b7dc489a096b546f43b231f"));
    for _ in 0..1000 {
        monte_carlo.encrypt_block(&mut block);
    }
    answers.extend_from_slice(&block);
    answers
}

/// 4,096 blocks, each the cipher text of the one before.
fn aes_chain(seed: u64) -> u64 {
    let words = |from: u64| [mixed(from).to_be_bytes(), mixed(!from).to_be_bytes()].concat();
    let cipher = Aes128::new(GenericArray::from_slice(&words(seed)));
    let mut block = GenericArray::clone_from_slice(&words(mixed(seed)));
    for _ in 0..4096 {
        cipher.encrypt_block(&mut block);
    }
    let halves = block.chunks_exact(8).map(|half| {
        let half: [u8; 8] = half.try_into().expect("a chunk of 8 has 8 bytes");
        u64::from_be_bytes(half)
    });
    halves.fold(0, |digest, half| digest.rotate_left(1) ^ half)
}

/// FIPS 180-4 in NIST's examples: "abc", and a million times "a".
const SHA256_ANSWERS: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\
cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

fn sha256_vectors() -> Vec<u8> {
    let thousand = [black_box(b'a'); 1000];
    let mut million = Sha256::new();
    for _ in 0..1000 {
        million.update(thousand);
    }
    [Sha256::digest(black_box(b"abc")), million.finalize()].concat()
}

/// The bytes that a text of hexadecimal digits stands for.
fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).map_or(0, |digit| digit as u8);
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_cpu_gives_every_known_answer() {
        let all = known();
        assert!(all.len() >= 5);
        for known in all {
            assert_eq!((known.compute)(), known.answer, "{}", known.unit);
        }
    }

    #[test]
    fn seeded_computations_depend_on_their_seed_alone() {
        for seeded in seeded() {
            let from = |seed| (seeded.compute)(seed);
            assert_eq!(from(7), from(7), "{}", seeded.unit);
            assert_ne!(from(7), from(8), "{}", seeded.unit);
        }
    }
}
