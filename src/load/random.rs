//! Random numbers whose stream never changes between releases: SplitMix64 (public domain algorithm by S. Vigna).
//!
//! The generator promises the same forms for the same seed and run; a library's default generator does not.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Stream(u64);

impl Stream {
    /// The stream of a seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        // 53 bits fill the fraction of a double exactly.
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number in `low..=high`; `low` if the range is empty.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        let width = u64::try_from(high.saturating_sub(low)).unwrap_or(0).saturating_add(1);
        low.saturating_add_unsigned(((u128::from(self.bits()) * u128::from(width)) >> 64) as u64)
    }

    /// An index below `length`; 0 if there is none.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        ((u128::from(self.bits()) * length as u128) >> 64) as usize
    }

    /// True with probability `share`.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }
}

/// Scrambles a number; different numbers stay different.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Makes ids of 32 hexadecimal digits that never repeat inside one series and, but for a chance of 2^-64, between series.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    series: u64,
    made: u64,
}

impl Ids {
    /// The series of a seed, a run and a purpose.
    pub(crate) fn new(seed: u64, run: u64, purpose: &str) -> Self {
        let start = mix(mix(seed.wrapping_add(1)) ^ run.wrapping_mul(0x2545_f491_4f6c_dd1d));
        Self { series: purpose.bytes().fold(start, |at, byte| mix(at ^ u64::from(byte))), made: 0 }
    }

    /// The next id.
    pub(crate) fn next(&mut self) -> String {
        self.made += 1;
        format!("{:016x}{:016x}", self.series, mix(self.series.rotate_left(17).wrapping_add(self.made)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_stream_is_the_published_algorithm() {
        // First outputs of SplitMix64 for seed 1234567, from its reference implementation.
        let mut stream = Stream::new(1_234_567);
        assert_eq!([stream.bits(), stream.bits()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn ranges_are_covered_to_both_ends() {
        let mut stream = Stream::new(1);
        let drawn: HashSet<i64> = (0..1000).map(|_| stream.between(-2, 3)).collect();
        assert_eq!(drawn, (-2..=3).collect());
        let drawn: HashSet<usize> = (0..1000).map(|_| stream.index(4)).collect();
        assert_eq!(drawn, (0..4).collect());
        assert_eq!((stream.between(5, 4), stream.index(0)), (5, 0));
    }

    #[test]
    fn ids_differ_by_seed_run_and_purpose() {
        let mut all = HashSet::new();
        for (seed, run, purpose) in [(1, 1, "form"), (1, 2, "form"), (2, 1, "form"), (1, 1, "case")] {
            let mut ids = Ids::new(seed, run, purpose);
            all.extend((0..1000).map(|_| ids.next()));
        }
        assert_eq!(all.len(), 4000);
        assert!(all.iter().all(|id| id.len() == 32));
        assert_eq!(Ids::new(1, 1, "form").next(), Ids::new(1, 1, "form").next());
    }
}
