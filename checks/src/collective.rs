//! The arithmetic of collectives, as nccl-tests defines it (`doc/PERFORMANCE.md`). Bandwidths are in 10⁹ bytes a second.

/// How many of the largest sizes make a plateau.
const PLATEAU_SIZES: usize = 3;

/// How far figures that say the same may be apart, as a part of them, beyond what they were rounded by.
pub const EQUAL: f64 = 1e-4;

/// Algorithm bandwidth: message size over the time of one operation.
pub fn algbw_gb_per_s(bytes: u64, time_us: f64) -> f64 {
    bytes as f64 / time_us / 1e3
}

/// Bus bandwidth of an all-reduce over `ranks`: `algbw · 2(n − 1)/n`, what each rank's link carries, so that it can be
/// compared with the rate of a link whatever n is. With one rank nothing crosses a link, and it is 0.
pub fn all_reduce_busbw_gb_per_s(algbw_gb_per_s: f64, ranks: u32) -> f64 {
    let ranks = f64::from(ranks.max(1));
    algbw_gb_per_s * 2.0 * (ranks - 1.0) / ranks
}

/// The median of the bandwidths of the largest sizes; `by_size` holds them in the order of sizes. Neither the mean of a
/// sweep that begins with latencies, nor the one size at which another algorithm happens to avoid a slow path.
pub fn plateau(by_size: &[f64]) -> Option<f64> {
    let mut largest = by_size[by_size.len().saturating_sub(PLATEAU_SIZES)..].to_vec();
    largest.sort_by(f64::total_cmp);
    largest.get(largest.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_all_reduce_of_two_moves_each_byte_once_over_each_link() {
        assert_eq!(algbw_gb_per_s(1_000_000, 1_000.0), 1.0);
        assert_eq!(all_reduce_busbw_gb_per_s(1.0, 2), 1.0);
        assert_eq!(all_reduce_busbw_gb_per_s(1.0, 8), 1.75);
        assert_eq!(all_reduce_busbw_gb_per_s(1.0, 1), 0.0);
    }

    #[test]
    fn a_plateau_is_the_median_of_the_largest_sizes() {
        assert_eq!(plateau(&[]), None);
        assert_eq!(plateau(&[5.0]), Some(5.0));
        assert_eq!(plateau(&[0.1, 9.0, 7.0, 8.0]), Some(8.0));
    }
}
