//! Answers that come in chunks.

use super::answer::{Head, Usage};
use super::error::ApiError;
use super::generate::Generation;
use super::request::{Kind, StreamOptions};
use crate::http::{Answer, Cut, Outlet, events};

/// The answer that a generation streams. Dropping it ends the generation.
pub fn stream(generation: Generation, head: Head, options: StreamOptions, cut_after: Option<u64>) -> Answer {
    events(move |mut outlet| async move {
        outlet.cut_after(cut_after);
        outlet.may_go_on().await?;
        run(generation, head, options, outlet).await
    })
}

async fn run(mut generation: Generation, head: Head, options: StreamOptions, mut outlet: Outlet) -> Result<(), Cut> {
    let wants_usage = options.include_usage == Some(true);
    let continuous = wants_usage && options.continuous_usage_stats == Some(true);
    let mut opened = head.kind == Kind::Text;
    loop {
        match generation.step().await {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) => {
                let _ = generation.end();
                outlet.send(serde_json::to_vec(&ApiError::dead())).await?;
                return outlet.done().await;
            }
        }
        let prompt_tokens = generation.plan.prompt_tokens();
        if !opened {
            opened = true;
            let usage = continuous.then(|| Usage::new(prompt_tokens, 0));
            for index in 0..generation.choices.len() {
                outlet.send(head.opening(index, usage)).await?;
            }
        }
        let usage = continuous.then(|| Usage::of(&generation));
        for (index, choice) in generation.choices.iter_mut().enumerate() {
            let stop_reason = choice.stop_reason(&generation.plan);
            if let Some((text, finish)) = choice.news(&generation.plan) {
                outlet.send(head.piece(index, text, finish, stop_reason, usage)).await?;
            }
        }
    }
    let usage = Usage::of(&generation);
    let _ = generation.end();
    if wants_usage {
        outlet.send(head.closing(usage)).await?;
    }
    outlet.done().await
}
