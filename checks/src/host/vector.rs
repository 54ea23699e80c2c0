//! The vector units of the CPU, each driven by its own instructions.
//!
//! All of them compute the same thing: [`LANES`] pairs of a real number in a chaotic sequence and a whole number in a
//! random one, so that an error in any lane and step changes the digest. One answer is therefore right for all units, and
//! plain code can compute it too.

/// Lanes that are computed side by side: enough registers to keep the multipliers of the widest unit busy.
pub const LANES: usize = 32;

/// Steps of one computation.
const STEPS: usize = 4096;

/// The logistic map is chaotic with this factor: the last bit of a number decides over all bits some 50 steps later.
const FACTOR: f64 = 3.99;

/// The multiplier of Marsaglia's multiply-with-carry generator with base 2³² (G. Marsaglia, "Random number generators", 2003).
const MULTIPLIER: u32 = 4_294_957_665;

/// One vector unit that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorUnit(Instructions);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

#[cfg(target_arch = "x86_64")]
const KNOWN: &[Instructions] = &[Instructions::Avx2, Instructions::Avx512];
#[cfg(target_arch = "aarch64")]
const KNOWN: &[Instructions] = &[Instructions::Neon];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const KNOWN: &[Instructions] = &[];

impl Instructions {
    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => "NEON",
        }
    }

    fn are_there(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => std::arch::is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => std::arch::is_aarch64_feature_detected!("neon"),
        }
    }
}

impl VectorUnit {
    /// The units that this CPU and its kernel offer, narrowest first.
    pub fn there() -> impl Iterator<Item = VectorUnit> {
        let there = KNOWN.iter().filter(|unit| unit.are_there());
        there.copied().map(VectorUnit)
    }

    /// The names of units that dhc could drive and this CPU lacks.
    pub fn absent() -> impl Iterator<Item = &'static str> {
        let absent = KNOWN.iter().filter(|unit| !unit.are_there());
        absent.map(|unit| unit.name())
    }

    /// What the vendor calls it.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The digest of all lanes after [`STEPS`] steps from `seed`, computed by this unit.
    #[expect(
        unsafe_code,
        reason = "code for a vector unit may run only where it is there"
    )]
    pub fn digest(self, seed: u64) -> u64 {
        let (mut reals, mut wholes) = lanes(seed);
        // SAFETY: a `VectorUnit` is made by `there` alone, which has seen that the CPU has these instructions.
        unsafe {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => x86::avx2(&mut reals, &mut wholes),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => x86::avx512(&mut reals, &mut wholes),
                #[cfg(target_arch = "aarch64")]
                Instructions::Neon => arm::neon(&mut reals, &mut wholes),
            }
        }
        fold(&reals, &wholes)
    }
}

/// The beginnings of all lanes.
fn lanes(seed: u64) -> ([f64; LANES], [u64; LANES]) {
    let begin = |lane: usize| mixed(seed.wrapping_add((lane as u64).wrapping_mul(GOLDEN)));
    (
        std::array::from_fn(|lane| fraction(begin(lane))),
        std::array::from_fn(|lane| mixed(begin(lane))),
    )
}

fn fold(reals: &[f64; LANES], wholes: &[u64; LANES]) -> u64 {
    let lanes = reals.iter().zip(wholes);
    lanes.fold(0, |digest: u64, (real, whole)| {
        digest.rotate_left(7) ^ whole ^ real.to_bits()
    })
}

/// 2⁶⁴ divided by the golden ratio, which spreads numbers that follow one another.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A number that looks like chance and follows from `seed` (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).
pub fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A real number between 0 and 1, neither included.
#[expect(
    clippy::cast_precision_loss,
    reason = "52 bits and a half are exact in an f64"
)]
pub fn fraction(bits: u64) -> f64 {
    ((bits >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{FACTOR, LANES, MULTIPLIER, STEPS};

    /// The steps of all lanes, by a unit whose registers hold `$width` of them.
    macro_rules! unit {
        (
            $name:ident, $features:literal, $width:literal, $reals:ty, $wholes:ty,
            $set_real:ident, $set_whole:ident, $multiply:ident, $multiply_subtract:ident,
            $multiply_low:ident, $shift:ident, $add:ident, $xor:ident, $bits:ident
        ) => {
            #[target_feature(enable = $features)]
            #[expect(unsafe_code, reason = "registers are read and written as arrays")]
            pub(super) fn $name(reals: &mut [f64; LANES], wholes: &mut [u64; LANES]) {
                const REGISTERS: usize = LANES / $width;
                // SAFETY: a register is as large as so many numbers of 64 bits, and any bits are a value of either.
                let (mut x, mut n) = unsafe {
                    (
                        std::mem::transmute::<[f64; LANES], [$reals; REGISTERS]>(*reals),
                        std::mem::transmute::<[u64; LANES], [$wholes; REGISTERS]>(*wholes),
                    )
                };
                let factor = $set_real(FACTOR);
                let multiplier = $set_whole(i64::from(MULTIPLIER));
                for _ in 0..STEPS {
                    for (x, n) in x.iter_mut().zip(&mut n) {
                        let t = $multiply(factor, *x);
                        *x = $multiply_subtract(t, *x, t);
                        let product = $multiply_low(*n, multiplier);
                        *n = $xor($add(product, $shift::<32>(*n)), $bits(*x));
                    }
                }
                // SAFETY: as above.
                unsafe {
                    *reals = std::mem::transmute::<[$reals; REGISTERS], [f64; LANES]>(x);
                    *wholes = std::mem::transmute::<[$wholes; REGISTERS], [u64; LANES]>(n);
                }
            }
        };
    }

    unit!(
        avx2,
        "avx2,fma",
        4,
        __m256d,
        __m256i,
        _mm256_set1_pd,
        _mm256_set1_epi64x,
        _mm256_mul_pd,
        _mm256_fnmadd_pd,
        _mm256_mul_epu32,
        _mm256_srli_epi64,
        _mm256_add_epi64,
        _mm256_xor_si256,
        _mm256_castpd_si256
    );
    unit!(
        avx512,
        "avx512f",
        8,
        __m512d,
        __m512i,
        _mm512_set1_pd,
        _mm512_set1_epi64,
        _mm512_mul_pd,
        _mm512_fnmadd_pd,
        _mm512_mul_epu32,
        _mm512_srli_epi64,
        _mm512_add_epi64,
        _mm512_xor_si512,
        _mm512_castpd_si512
    );
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{FACTOR, LANES, MULTIPLIER, STEPS};

    /// The steps of all lanes, two in a register.
    #[target_feature(enable = "neon")]
    #[expect(unsafe_code, reason = "registers are read and written as arrays")]
    pub(super) fn neon(reals: &mut [f64; LANES], wholes: &mut [u64; LANES]) {
        const REGISTERS: usize = LANES / 2;
        // SAFETY: a register is as large as two numbers of 64 bits, and any bits are a value of either.
        let (mut x, mut n) = unsafe {
            (
                std::mem::transmute::<[f64; LANES], [float64x2_t; REGISTERS]>(*reals),
                std::mem::transmute::<[u64; LANES], [uint64x2_t; REGISTERS]>(*wholes),
            )
        };
        let factor = vdupq_n_f64(FACTOR);
        let multiplier = vdup_n_u32(MULTIPLIER);
        for _ in 0..STEPS {
            for (x, n) in x.iter_mut().zip(&mut n) {
                let t = vmulq_f64(factor, *x);
                *x = vfmsq_f64(t, t, *x);
                let product = vmull_u32(vmovn_u64(*n), multiplier);
                let next = vaddq_u64(product, vshrq_n_u64::<32>(*n));
                *n = veorq_u64(next, vreinterpretq_u64_f64(*x));
            }
        }
        // SAFETY: as above.
        unsafe {
            *reals = std::mem::transmute::<[float64x2_t; REGISTERS], [f64; LANES]>(x);
            *wholes = std::mem::transmute::<[uint64x2_t; REGISTERS], [u64; LANES]>(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by plain code, lane after lane.
    fn plainly(seed: u64) -> u64 {
        let (mut reals, mut wholes) = lanes(seed);
        for (x, n) in reals.iter_mut().zip(&mut wholes) {
            for _ in 0..STEPS {
                let t = FACTOR * *x;
                *x = (-t).mul_add(*x, t);
                *n = (*n & 0xFFFF_FFFF).wrapping_mul(u64::from(MULTIPLIER)) + (*n >> 32);
                *n ^= x.to_bits();
            }
        }
        fold(&reals, &wholes)
    }

    #[test]
    fn every_unit_of_this_cpu_computes_what_plain_code_computes() {
        let units: Vec<VectorUnit> = VectorUnit::there().collect();
        assert_eq!(units.len() + VectorUnit::absent().count(), KNOWN.len());
        for seed in [0, 1, 2, u64::MAX] {
            for unit in &units {
                assert_eq!(unit.digest(seed), plainly(seed), "{unit:?} from {seed}");
            }
        }
    }

    #[test]
    fn one_wrong_bit_in_one_lane_changes_the_digest() {
        let (mut reals, mut wholes) = lanes(1);
        let right = fold(&reals, &wholes);
        reals[17] = f64::from_bits(reals[17].to_bits() ^ 1);
        assert_ne!(fold(&reals, &wholes), right);
        reals[17] = f64::from_bits(reals[17].to_bits() ^ 1);
        wholes[31] ^= 1 << 63;
        assert_ne!(fold(&reals, &wholes), right);
    }
}
