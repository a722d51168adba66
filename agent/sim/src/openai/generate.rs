//! Generation: each step gives each unfinished choice one word more.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::{Stop, Ticket};
use crate::metrics::Finish;
use crate::settings::Settings;
use crate::words::Digest;

/// After so many steps others get a turn, whatever the pace.
const TURN: u64 = 64;

/// What a request wants generated.
#[derive(Clone, Debug)]
pub struct Plan {
    prompts: Vec<Digest>,
    n: u32,
    stops: Vec<String>,
    include_stop: bool,
    /// The end of each prompt's answers.
    ends: Vec<(u32, Finish)>,
    first: Duration,
    interval: Duration,
}

/// One answer.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    prompt: usize,
    number: u32,
    text: String,
    /// Bytes of the text that the client has.
    sent: usize,
    tokens: u32,
    /// How it ended, and the stop string that it met.
    end: Option<(Finish, Option<usize>)>,
    /// Whether the client knows that it has ended.
    told: bool,
}

impl Plan {
    /// The answers of each prompt have `most` tokens, or end by themselves where that is not given.
    #[must_use]
    pub fn new(
        prompts: Vec<Digest>,
        n: u32,
        most: Option<u32>,
        stops: Vec<String>,
        include_stop: bool,
        settings: &Settings,
    ) -> Self {
        let arguments = &settings.arguments;
        let ends = prompts.iter().map(|prompt| {
            let room = u64::from(arguments.max_model_len).saturating_sub(prompt.tokens());
            let room = u32::try_from(room).unwrap_or(u32::MAX);
            match most {
                Some(most) => (most, Finish::Length),
                None if arguments.tokens <= room => (arguments.tokens, Finish::Stop),
                None => (room, Finish::Length),
            }
        });
        let ends = ends.collect();
        let first = Duration::from_millis(arguments.ttft_ms);
        Self { prompts, n, stops, include_stop, ends, first, interval: settings.interval() }
    }

    /// Tokens of all prompts.
    #[must_use]
    pub fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.tokens()).sum()
    }

    fn choices(&self) -> Vec<Choice> {
        let of_prompt = |prompt| (0..self.n).map(move |number| Choice { prompt, number, ..Choice::default() });
        (0..self.prompts.len()).flat_map(of_prompt).collect()
    }
}

impl Choice {
    /// Adds a word.
    fn step(&mut self, plan: &Plan) {
        let before = self.text.len();
        if self.tokens > 0 {
            self.text.push(' ');
        }
        self.text.push_str(plan.prompts[self.prompt].answer(self.number, self.tokens));
        self.tokens += 1;
        let (most, finish) = plan.ends[self.prompt];
        if let Some((stop, at)) = self.stop(plan, before) {
            self.text.truncate(if plan.include_stop { at + plan.stops[stop].len() } else { at });
            self.end = Some((Finish::Stop, Some(stop)));
        } else if self.tokens >= most {
            self.end = Some((finish, None));
        }
    }

    /// The first stop string that the text has met since it was `before` bytes long, and where that begins.
    fn stop(&self, plan: &Plan, before: usize) -> Option<(usize, usize)> {
        plan.stops.iter().enumerate().find_map(|(number, stop)| {
            let from = (before + 1).saturating_sub(stop.len());
            // All words are ASCII, so there is a character at every index.
            let at = self.text.get(from..)?.find(stop.as_str())?;
            Some((number, from + at))
        })
    }

    /// The text that the client does not have yet, without what may turn out to begin a stop string, and the end if it
    /// comes with this text.
    pub fn news(&mut self, plan: &Plan) -> Option<(&str, Option<Finish>)> {
        if self.told {
            return None;
        }
        let held = plan.stops.iter().map(String::len).max().map_or(0, |longest| longest - 1);
        let end = self.end.map_or_else(|| self.text.len().saturating_sub(held), |_| self.text.len());
        let from = self.sent;
        self.sent = end.max(from);
        self.told = self.end.is_some();
        Some((self.text.get(from..self.sent).unwrap_or_default(), self.finish()))
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How it ended.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        self.end.map(|(finish, _)| finish)
    }

    /// The stop string that ended it.
    #[must_use]
    pub fn stop_reason<'a>(&self, plan: &'a Plan) -> Option<&'a str> {
        let (_, stop) = self.end?;
        plan.stops.get(stop?).map(String::as_str)
    }
}

/// A request's generation under way.
#[derive(Debug)]
pub struct Generation {
    /// What is generated.
    pub plan: Plan,
    /// So far.
    pub choices: Vec<Choice>,
    ticket: Ticket,
    due: Option<Instant>,
    steps: u64,
}

impl Generation {
    /// One that has not begun.
    #[must_use]
    pub fn new(plan: Plan, mut ticket: Ticket) -> Self {
        let most = plan.ends.iter().map(|(most, _)| *most).max().unwrap_or(0);
        ticket.asks(plan.n, most);
        Self { choices: plan.choices(), plan, ticket, due: None, steps: 0 }
    }

    /// Makes the next token of each choice when its time has come. False when there is none left to make.
    ///
    /// # Errors
    /// When the engine has died. An abort by the engine is an end like others.
    pub async fn step(&mut self) -> Result<bool, Stop> {
        if self.choices.iter().all(|choice| choice.end.is_some()) {
            return Ok(false);
        }
        match self.turn().await {
            Ok(()) => {}
            Err(Stop::Aborted) => {
                let unfinished = self.choices.iter_mut().filter(|choice| choice.end.is_none());
                unfinished.for_each(|choice| choice.end = Some((Finish::Abort, None)));
                return Ok(true);
            }
            Err(Stop::Dead) => return Err(Stop::Dead),
        }
        let mut tokens = 0;
        for choice in self.choices.iter_mut().filter(|choice| choice.end.is_none()) {
            choice.step(&self.plan);
            tokens += 1;
        }
        self.ticket.step(tokens);
        Ok(true)
    }

    /// Waits for the time of the next token.
    async fn turn(&mut self) -> Result<(), Stop> {
        let due = match self.due {
            Some(last) => last + self.plan.interval,
            None => {
                self.ticket.start().await?;
                Instant::now() + self.plan.first
            }
        };
        self.steps += 1;
        if self.steps.is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
        self.due = Some(self.ticket.until(due).await?);
        Ok(())
    }

    /// Tokens of all answers so far.
    #[must_use]
    pub fn generated(&self) -> u64 {
        self.choices.iter().map(|choice| u64::from(choice.tokens)).sum()
    }

    /// Ends the request: as its first choice did, or with an error where that did not end.
    #[must_use]
    pub fn end(self) -> (Plan, Vec<Choice>) {
        let finish = self.choices.first().and_then(Choice::finish).unwrap_or(Finish::Error);
        self.ticket.finish(finish);
        (self.plan, self.choices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn plan(most: Option<u32>, stops: &[&str], include_stop: bool) -> Plan {
        let arguments = arguments::parse(["--tokens", "5"].map(Into::into)).unwrap();
        let settings = Settings { arguments, dev_mode: false };
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        Plan::new(vec![Digest::of("hello")], 1, most, stops, include_stop, &settings)
    }

    /// The whole text, the pieces that a stream would have sent, and the end.
    fn run(plan: &Plan) -> (String, Vec<String>, Finish) {
        let mut choice = plan.choices().remove(0);
        let mut pieces = Vec::new();
        while choice.finish().is_none() {
            choice.step(plan);
            pieces.push(choice.news(plan).unwrap().0.to_owned());
        }
        assert_eq!(choice.news(plan), None, "the end is told once");
        (choice.text.clone(), pieces, choice.finish().unwrap())
    }

    #[test]
    fn a_limit_ends_with_length_and_no_limit_with_stop() {
        let (text, pieces, finish) = run(&plan(Some(3), &[], false));
        assert_eq!((text.split(' ').count(), pieces.len(), finish), (3, 3, Finish::Length));
        let (text, _, finish) = run(&plan(None, &[], false));
        assert_eq!((text.split(' ').count(), finish), (5, Finish::Stop));
    }

    #[test]
    fn no_piece_of_a_stop_string_is_ever_sent() {
        let (whole, ..) = run(&plan(Some(8), &[], false));
        let words: Vec<_> = whole.split(' ').collect();
        let stop = format!("{} {}", words[3], &words[4][..2]);
        let (text, pieces, finish) = run(&plan(Some(8), &[&stop, "never"], false));
        assert_eq!(text, format!("{} ", words[..3].join(" ")));
        assert_eq!((pieces.concat(), finish), (text.clone(), Finish::Stop));
        let (with, ..) = run(&plan(Some(8), &[&stop], true));
        assert_eq!(with, text + &stop);
    }

    #[test]
    fn a_stop_string_longer_than_the_answer_holds_it_back_to_the_end() {
        let long = "x".repeat(10_000);
        let (text, pieces, finish) = run(&plan(Some(4), &[&long], false));
        assert_eq!((pieces.last(), finish), (Some(&text), Finish::Length));
    }
}
