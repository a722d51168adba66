//! Histograms as Prometheus exposes them.

/// A histogram with fixed bounds.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: Vec<f64>,
    /// One more than bounds: the last is for what exceeds them all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty one. The bounds ascend.
    #[must_use]
    pub fn new(bounds: &[f64]) -> Self {
        Self { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// An empty one with the bounds 1, 2, 5, 10 and so on up to a limit, as vLLM has them for numbers of tokens.
    #[must_use]
    pub fn up_to(limit: u32) -> Self {
        let steps = (0..10).flat_map(|exponent| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(exponent)));
        Self::new(&steps.take_while(|bound| *bound <= f64::from(limit)).collect::<Vec<_>>())
    }

    /// Counts a value.
    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += value;
    }

    /// Adds the values of another one with the same bounds.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }

    /// The bounds as texts, each with the number of values up to it. The last is `+Inf`.
    pub fn buckets(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let bounds = self.bounds.iter().map(|bound| format!("{bound:?}")).chain(["+Inf".to_owned()]);
        let cumulative = self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        bounds.zip(cumulative)
    }

    /// How many values it has counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_every_bucket_that_holds_it() {
        let mut histogram = Histogram::up_to(25);
        for value in [1.0, 3.0, 20.0, 21.0] {
            histogram.observe(value);
        }
        let buckets: Vec<_> = histogram.buckets().map(|(bound, count)| format!("{bound}={count}")).collect();
        assert_eq!(buckets, ["1.0=1", "2.0=1", "5.0=2", "10.0=2", "20.0=3", "+Inf=4"]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 45.0));
    }
}
