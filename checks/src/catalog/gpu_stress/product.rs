//! Products of matrices of small whole numbers, of which every element is known without multiplying. Pure.
//!
//! The factors repeat with a period `P` along both of their indices: `A[i, k] = a[(i + k) % P]` and
//! `B[k, j] = b[(k + j) % P]`. Put `k' = k + j`, and the element `(i, j)` of the product is the sum over `k'` of
//! `a[i - j + k'] b[k']`: one number for each value of `(i - j) % P`. All numbers in it are whole and so small that FP16
//! factors and FP32 sums are exact, in whatever order they are added up, and so is the sum of many products.

/// The period, and what a size is a multiple of.
pub(super) const PERIOD: usize = 64;

/// The greatest whole number up to which FP32 has all of them.
const EXACT: f32 = 16_777_216.0;

/// The greatest number in the factors, whichever its sign.
const GREATEST: usize = 8;

/// A product of square matrices.
pub(super) struct Product {
    size: usize,
    a: [i8; PERIOD],
    b: [i8; PERIOD],
    /// The elements of the product, by the row less the column.
    elements: [f32; PERIOD],
}

/// Elements that are not what they must be.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wrong {
    pub(super) elements: u64,
    /// Row, column, what was found and what must be there.
    pub(super) first: Option<(usize, usize, f32, f32)>,
}

impl Product {
    /// A product of matrices of this size, which is a multiple of the period.
    #[expect(
        clippy::cast_precision_loss,
        reason = "sums are below 2^24, as the size is below 2^18"
    )]
    pub(super) fn new(size: usize) -> Product {
        // A generator of the simplest kind (Knuth's MMIX): the numbers only have to differ.
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            i8::try_from((state >> 33) % 17).unwrap_or_default() - 8
        };
        let a = std::array::from_fn(|_| next());
        let b = std::array::from_fn(|_| next());
        let times = i64::try_from(size / PERIOD).unwrap_or(i64::MAX);
        let elements = std::array::from_fn(|difference| {
            let terms =
                (0..PERIOD).map(|k| i64::from(a[(difference + k) % PERIOD]) * i64::from(b[k]));
            (terms.sum::<i64>() * times) as f32
        });
        Product {
            size,
            a,
            b,
            elements,
        }
    }

    /// How many products can be added up before a sum is no longer exact, on the way to the last one as well.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "positive numbers below 2^24"
    )]
    pub(super) fn sums_max(&self) -> u32 {
        let greatest = self
            .elements
            .iter()
            .fold(1.0, |max: f32, sum| max.max(sum.abs()));
        let on_the_way = (GREATEST * GREATEST * self.size) as f32;
        ((EXACT - on_the_way) / greatest) as u32
    }

    /// The two factors as they lie in memory: columns of FP16, two in a word.
    pub(super) fn factors(&self) -> [Vec<u32>; 2] {
        [self.packed(&self.a), self.packed(&self.b)]
    }

    fn packed(&self, numbers: &[i8; PERIOD]) -> Vec<u32> {
        let halves = numbers.map(|number| u32::from(half(number)));
        let mut words = Vec::with_capacity(self.size * self.size / 2);
        for column in 0..self.size {
            for row in (0..self.size).step_by(2) {
                let [low, high] = [row, row + 1].map(|row| halves[(row + column) % PERIOD]);
                words.push(high << 16 | low);
            }
        }
        words
    }

    /// Looks at whole columns from `first` on of the sum of so many products.
    #[expect(clippy::cast_precision_loss, reason = "as many as `sums_max` allows")]
    pub(super) fn check(&self, first: usize, columns: &[f32], products: u32) -> Wrong {
        let mut wrong = Wrong::default();
        for (column, found) in (first..).zip(columns.chunks_exact(self.size)) {
            let due: [f32; PERIOD] = std::array::from_fn(|row| {
                let difference = (row + PERIOD - column % PERIOD) % PERIOD;
                self.elements[difference] * products as f32
            });
            for (place, found) in found.chunks_exact(PERIOD).enumerate() {
                if found == due {
                    continue;
                }
                for (row, (found, due)) in found.iter().zip(&due).enumerate() {
                    // What is not a number is wrong as well.
                    if found != due {
                        wrong.elements += 1;
                        wrong
                            .first
                            .get_or_insert((place * PERIOD + row, column, *found, *due));
                    }
                }
            }
        }
        wrong
    }
}

/// A small whole number as FP16, which has ten bits of mantissa and a bias of 15.
fn half(number: i8) -> u16 {
    if number == 0 {
        return 0;
    }
    let bits = f32::from(number).to_bits();
    let (sign, rest) = (bits >> 31, bits & 0x7fff_ffff);
    let half = sign << 15 | ((rest >> 13) - ((127 - 15) << 10));
    u16::try_from(half).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product by its definition, in whole numbers, column by column.
    fn multiplied(product: &Product) -> Vec<f32> {
        let size = product.size;
        let element = |i: usize, j: usize| -> i32 {
            let terms = (0..size).map(|k| {
                i32::from(product.a[(i + k) % PERIOD]) * i32::from(product.b[(k + j) % PERIOD])
            });
            terms.sum()
        };
        let places = (0..size).flat_map(|j| (0..size).map(move |i| (i, j)));
        places.map(|(i, j)| element(i, j) as f32).collect()
    }

    #[test]
    fn every_element_is_what_multiplying_gives() {
        let product = Product::new(128);
        let multiplied = multiplied(&product);
        assert_eq!(product.check(0, &multiplied, 1), Wrong::default());
        let half = &multiplied[128 * 64..];
        assert_eq!(product.check(64, half, 1), Wrong::default());
        let wrong = product.check(63, half, 1);
        assert!(
            wrong.elements > 4_000,
            "another column is another one: {wrong:?}"
        );
    }

    #[test]
    fn one_wrong_element_is_found_at_its_place() {
        let product = Product::new(128);
        let mut columns = multiplied(&product);
        let due = columns[128 * 5 + 77];
        for found in [due + 1.0, f32::NAN] {
            columns[128 * 5 + 77] = found;
            let wrong = product.check(0, &columns, 1);
            assert_eq!(wrong.elements, 1);
            let (row, column, ..) = wrong.first.unwrap();
            assert_eq!((row, column), (77, 5));
        }
    }

    #[test]
    fn sums_stay_exact_at_every_size_that_can_be_asked_for() {
        for size in [64, 8_192, 32_768] {
            let product = Product::new(size);
            let numbers = product.a.iter().chain(&product.b);
            assert!(
                numbers
                    .map(|n| usize::from(n.unsigned_abs()))
                    .all(|n| n <= GREATEST)
            );
            let greatest = product
                .elements
                .iter()
                .fold(0.0, |max: f32, sum| max.max(sum.abs()));
            assert!(product.sums_max() >= 8, "{size}: {greatest}");
            let sums = f64::from(greatest) * f64::from(product.sums_max());
            assert!(
                sums + (64 * size) as f64 <= f64::from(EXACT),
                "{size}: {greatest}"
            );
        }
    }

    #[test]
    fn small_whole_numbers_are_written_as_halves() {
        // IEEE 754 binary16.
        let known = [
            (0, 0),
            (1, 0x3c00),
            (-1, 0xbc00),
            (2, 0x4000),
            (3, 0x4200),
            (-8, 0xc800),
        ];
        for (number, bits) in known {
            assert_eq!(half(number), bits, "{number}");
        }
    }
}
