//! How far a pull has come, added up over the layers of the image.

use std::collections::HashMap;

use bollard::models::CreateImageInfo;

use crate::runtime::Progress;

/// More layers than an image can have; what comes beyond is not counted.
const MOST_LAYERS: usize = 1024;

/// What has been told of each layer.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    layers: HashMap<String, Layer>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Layer {
    pulled: u64,
    size: u64,
    complete: bool,
}

impl Tracker {
    /// Takes in one message of the daemon.
    pub(super) fn observe(&mut self, message: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&message.id, message.status.as_deref()) else { return };
        let detail = message.progress_detail.as_ref();
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        let pulled = number(detail.and_then(|detail| detail.current));
        let size = number(detail.and_then(|detail| detail.total));
        if self.layers.len() >= MOST_LAYERS && !self.layers.contains_key(id) {
            return;
        }
        match status {
            "Pulling fs layer" | "Waiting" => {
                self.layers.entry(id.clone()).or_default();
            }
            "Downloading" => {
                let layer = self.layers.entry(id.clone()).or_default();
                layer.size = layer.size.max(size);
                layer.pulled = layer.pulled.max(pulled).min(layer.size);
            }
            "Download complete" | "Verifying Checksum" | "Extracting" | "Pull complete" | "Already exists" => {
                let layer = self.layers.entry(id.clone()).or_default();
                layer.pulled = layer.size;
                layer.complete = true;
            }
            // Tags, digests, and whatever else a daemon says.
            _ => {}
        }
    }

    /// The sum over all layers.
    pub(super) fn progress(&self) -> Progress {
        let sum = |part: fn(&Layer) -> u64| self.layers.values().map(part).fold(0, u64::saturating_add);
        let (pulled, size) = (sum(|layer| layer.pulled), sum(|layer| layer.size));
        let all_here = size > 0 && self.layers.values().all(|layer| layer.complete);
        let phase = if all_here { "extracting image" } else { "pulling image" };
        Progress { phase, pulled: (size > 0).then_some((pulled, size)) }
    }
}

/// Whether the step from one progress to another is worth telling: another phase, another size, or a hundredth of it.
pub(super) fn is_a_step(told: &Progress, now: &Progress) -> bool {
    match (told.pulled, now.pulled) {
        _ if told.phase != now.phase => true,
        (Some((before, old_size)), Some((pulled, size))) => {
            old_size != size || pulled.abs_diff(before) >= size.div_ceil(100)
        }
        (before, pulled) => before != pulled,
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    fn said(id: &str, status: &str, bytes: Option<(i64, i64)>) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: bytes
                .map(|(current, total)| ProgressDetail { current: Some(current), total: Some(total) }),
            ..Default::default()
        }
    }

    /// B13.
    #[test]
    fn a_pull_is_the_sum_of_its_layers() {
        let mut tracker = Tracker::default();
        tracker.observe(&said("a", "Downloading", Some((10, 100))));
        tracker.observe(&said("b", "Downloading", Some((20, 100))));
        assert_eq!(tracker.progress(), Progress { phase: "pulling image", pulled: Some((30, 200)) });
        tracker.observe(&said("a", "Download complete", None));
        assert_eq!(tracker.progress(), Progress { phase: "pulling image", pulled: Some((120, 200)) });
        tracker.observe(&said("b", "Download complete", None));
        assert_eq!(tracker.progress(), Progress { phase: "extracting image", pulled: Some((200, 200)) });
    }

    /// B13.
    #[test]
    fn layers_that_are_here_or_only_announced_count_nothing() {
        let mut tracker = Tracker::default();
        tracker.observe(&said("a", "Already exists", None));
        tracker.observe(&said("b", "Pulling fs layer", None));
        assert_eq!(tracker.progress(), Progress { phase: "pulling image", pulled: None });
        tracker.observe(&said("b", "Downloading", Some((5, 10))));
        assert_eq!(tracker.progress(), Progress { phase: "pulling image", pulled: Some((5, 10)) });
    }

    #[test]
    fn extracting_takes_nothing_away_and_waits_for_every_layer() {
        let mut tracker = Tracker::default();
        tracker.observe(&said("a", "Downloading", Some((100, 100))));
        tracker.observe(&said("b", "Waiting", None));
        tracker.observe(&said("a", "Extracting", Some((1, 100))));
        assert_eq!(tracker.progress(), Progress { phase: "pulling image", pulled: Some((100, 100)) });
    }

    #[test]
    fn numbers_that_make_no_sense_do_not_make_more_of_a_layer_than_it_is() {
        let mut tracker = Tracker::default();
        tracker.observe(&said("a", "Downloading", Some((500, 100))));
        tracker.observe(&said("b", "Downloading", Some((-5, -1))));
        assert_eq!(tracker.progress().pulled, Some((100, 100)));
    }

    #[test]
    fn a_hundredth_is_a_step_and_less_is_not() {
        let at = |pulled| Progress { phase: "pulling image", pulled: Some((pulled, 1000)) };
        assert!(!is_a_step(&at(100), &at(109)));
        assert!(is_a_step(&at(100), &at(110)));
        assert!(is_a_step(&at(100), &Progress { phase: "extracting image", ..at(100) }));
        assert!(is_a_step(&at(100), &Progress { phase: "pulling image", pulled: Some((100, 2000)) }));
    }
}
