//! One process takes the place of another on the same data directory, and no request fails.
//!
//! The successor says hello on `DATA_DIR/handover.sock` and where it wants to listen. If the running process agrees, it has
//! another node lead, drains (see [`muster_api::server::Ending`]), shuts its node down, and sends its listening sockets along, those of its placements among them;
//! connections that come meanwhile wait in the kernel's queues. The successor starts the node over them and says that it
//! serves; the old process finishes the answers that it has begun, and ends. Until that word the old process keeps the sockets
//! too: if the successor fails, it takes the node up again. The lock of the data directory sees to it that there is never
//! more than one of them.

mod door;
mod successor;
mod wire;

use std::time::Duration;

pub use door::{Candidate, Door, Offer};
pub use successor::{Inherited, Promise, take_over};

/// How long one side waits for a message that the other has nothing to do for.
const SAY_LIMIT: Duration = Duration::from_secs(5);

/// How long one side waits while the other closes or opens the node.
const WORK_LIMIT: Duration = Duration::from_secs(90);
