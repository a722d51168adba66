//! What a deployment has done in all its lives, from counters that begin anew with each of them.

use super::Sample;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub generation_tokens: u64,
    /// Requests that have ended.
    pub requests: u64,
}

impl Tally {
    /// Whether nothing was done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            generation_tokens: self.generation_tokens.saturating_add(other.generation_tokens),
            requests: self.requests.saturating_add(other.requests),
        }
    }
}

/// What one counter was when it was last seen; `None` is not known, so that its next value counts as nothing.
type Last = Option<u64>;

/// Turns what engines count into what there is to add to stored totals. It stores no total itself.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    prompt_tokens: Last,
    generation_tokens: Last,
    requests: Last,
    began: Option<f64>,
}

impl Totals {
    /// For an engine that runs already, with what is stored. Where nothing is stored, all that it counts is new. Otherwise nobody
    /// knows how much of it is stored, and only what comes is counted.
    #[must_use]
    pub fn resumed(stored: &Tally) -> Self {
        let last = |stored: u64| (stored == 0).then_some(0);
        Self {
            prompt_tokens: last(stored.prompt_tokens),
            generation_tokens: last(stored.generation_tokens),
            requests: last(stored.requests),
            began: None,
        }
    }

    /// For an engine that has just been started: all that it will count is new.
    #[must_use]
    pub fn fresh() -> Self {
        Self::resumed(&Tally::default())
    }

    /// The engine was started again, as whoever did it knows.
    pub fn restarted(&mut self) {
        *self = Self::fresh();
    }

    /// What has come since the last sample. If the process is another, or a counter has fallen, all have begun anew.
    pub fn fold(&mut self, sample: &Sample) -> Tally {
        let another = matches!((self.began, sample.began), (Some(then), Some(now)) if (now - then).abs() > 0.5);
        let fell = |last: Last, seen: Option<u64>| matches!((last, seen), (Some(last), Some(seen)) if seen < last);
        if another
            || fell(self.prompt_tokens, sample.prompt_tokens)
            || fell(self.generation_tokens, sample.generation_tokens)
            || fell(self.requests, sample.requests)
        {
            self.restarted();
        }
        self.began = sample.began.or(self.began);
        Tally {
            prompt_tokens: step(&mut self.prompt_tokens, sample.prompt_tokens),
            generation_tokens: step(&mut self.generation_tokens, sample.generation_tokens),
            requests: step(&mut self.requests, sample.requests),
        }
    }
}

fn step(last: &mut Last, seen: Option<u64>) -> u64 {
    let Some(seen) = seen else { return 0 };
    last.replace(seen).map_or(0, |last| seen.saturating_sub(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(count: u64) -> Sample {
        Sample { prompt_tokens: Some(count), ..Sample::default() }
    }

    fn tally(prompt_tokens: u64) -> Tally {
        Tally { prompt_tokens, ..Tally::default() }
    }

    #[test]
    fn totals_survive_restarts_of_engines_and_of_the_node() {
        let mut stored = Tally::default();
        let mut totals = Totals::resumed(&stored);
        for (seen, added) in [(500, 500), (700, 200), (50, 50)] {
            let delta = totals.fold(&prompts(seen));
            assert_eq!(delta, tally(added));
            stored = stored.plus(&delta);
        }
        assert_eq!(stored, tally(750));
        let mut totals = Totals::resumed(&stored);
        assert_eq!(totals.fold(&prompts(60)), tally(0));
        assert_eq!(totals.fold(&prompts(100)), tally(40));
    }

    #[test]
    fn what_an_engine_counts_after_its_start_is_all_new() {
        let mut totals = Totals::resumed(&tally(750));
        totals.restarted();
        assert_eq!(totals.fold(&prompts(60)), tally(60));
    }

    #[test]
    fn another_process_is_noticed_although_it_has_counted_more() {
        let at = |count, began| Sample { began: Some(began), ..prompts(count) };
        let mut totals = Totals::fresh();
        assert_eq!(totals.fold(&at(50, 1e9)), tally(50));
        assert_eq!(totals.fold(&at(60, 1e9)), tally(10));
        assert_eq!(totals.fold(&at(70, 1e9 + 30.0)), tally(70));
    }

    #[test]
    fn one_counter_that_has_fallen_shows_that_all_began_anew() {
        let mut totals = Totals::fresh();
        let at = |count, requests| Sample { requests: Some(requests), ..prompts(count) };
        totals.fold(&at(50, 5));
        assert_eq!(totals.fold(&at(20, 6)), Tally { prompt_tokens: 20, requests: 6, generation_tokens: 0 });
    }

    #[test]
    fn a_counter_that_is_absent_for_a_while_loses_nothing() {
        let mut totals = Totals::fresh();
        let all = Sample { generation_tokens: Some(7), requests: Some(1), ..prompts(10) };
        assert_eq!(totals.fold(&all), Tally { prompt_tokens: 10, generation_tokens: 7, requests: 1 });
        assert!(totals.fold(&Sample::default()).is_empty());
        assert_eq!(totals.fold(&prompts(15)), tally(5));
    }
}
