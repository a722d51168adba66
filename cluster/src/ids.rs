//! Identifiers that the whole fleet agrees on.

use std::fmt;

use uuid::Uuid;

/// A node's number in the fleet. It comes from a counter in the replicated state and is never given twice: a wiped disk is
/// a new node with a new number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

macro_rules! uuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new one, from the operating system's randomness.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The sixteen bytes that are stored and sent.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The identity that [`Self::as_bytes`] wrote, or `None` if there are not sixteen bytes.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

uuid! {
    /// The identity of one Raft log on one disk. It is made with the log and dies with it, which is how a peer notices that
    /// a node came back with an empty disk.
    StoreId
}

uuid! {
    /// A fleet, from its bootstrap on.
    FleetId
}

uuid! {
    /// A model of the registry. Its proposer makes it.
    ModelId
}

number! {
    /// A credential. It comes from a counter in the replicated state.
    CredentialId
}

number! {
    /// A deployment. It comes from a counter in the replicated state.
    DeploymentId
}

/// One of the places at which a deployment runs, counted from 0. It keeps its number when it moves to another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlacementId {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Which of its places.
    pub ordinal: u32,
}

impl fmt::Display for PlacementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.deployment, self.ordinal)
    }
}

number! {
    /// The log index of the commit that last gave a placement to a node. Whoever speaks for an older one is not heard.
    PlacementEpoch
}

number! {
    /// A leader's time in office: the log index of its `TakeOffice`. Commands of a duty carry it, and those of an older
    /// office are refused.
    Office
}

number! {
    /// The time of the log in milliseconds since 1970: the largest time that a leader has stamped on an entry so far.
    /// Everything that expires is judged by it.
    LogTime
}
