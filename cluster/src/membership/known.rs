//! Whom gossip may speak of: the nodes that this one knows from the replicated state, or met when it joined. A member could
//! tell of thousands that do not exist, and so can one that was taken out of the fleet, for as long as the old key is good.

use std::sync::Arc;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, PostcardCodec};

use super::identity::GossipId;
use crate::ids::NodeId;
use crate::transport::Registered;

/// The nodes that are known here, this one included.
#[derive(Clone, Debug)]
pub(super) struct Known(pub Arc<Registered>);

/// What is left of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sifted {
    /// It can be taken in; whoever is not known is no longer in it.
    Content {
        /// Who sent it.
        sender: NodeId,
        /// What is left.
        content: Vec<u8>,
        /// So many were left out.
        unknown: u64,
    },
    /// Its sender is not known.
    Unknown,
    /// It makes no sense.
    Malformed,
}

impl Known {
    pub fn has(&self, node: NodeId) -> bool {
        node == self.0.node || self.0.current().node(node).is_some()
    }

    /// Takes everybody out of a datagram who is not known: header, number of members, members, and what nodes tell of
    /// themselves. The last is sifted where it is taken in.
    pub fn sift(&self, datagram: &[u8]) -> Sifted {
        let mut rest = datagram;
        let Ok(header) = PostcardCodec.decode_header(&mut rest) else { return Sifted::Malformed };
        let header: Header<GossipId> = header;
        let sender = header.src.node();
        if !self.has(sender) {
            return Sifted::Unknown;
        }
        let all = |rest: &[u8]| datagram.get(..datagram.len() - rest.len()).unwrap_or_default().to_vec();
        // Broadcasts carry no members; what is too short for them is looked at by foca.
        if header.message == foca::Message::Broadcast || rest.len() < 2 {
            return Sifted::Content { sender, content: datagram.to_vec(), unknown: 0 };
        }
        let mut content = all(rest);
        let (mut kept, mut members, mut unknown) = (0_u16, Vec::<u8>::with_capacity(rest.len()), 0);
        for _ in 0..rest.get_u16() {
            let before = rest;
            let member: Result<foca::Member<GossipId>, _> = PostcardCodec.decode_member(&mut rest);
            let Ok(member) = member else { return Sifted::Malformed };
            if self.has(member.id().node()) {
                kept += 1;
                members.extend(&before[..before.len() - rest.len()]);
            } else {
                unknown += 1;
            }
        }
        content.put_u16(kept);
        content.extend(members);
        content.extend(rest);
        Sifted::Content { sender, content, unknown }
    }
}

#[cfg(test)]
mod tests {
    use foca::{Member, Message};

    use super::*;
    use crate::ids::{FleetId, StoreId};
    use crate::transport::{Peer, Registry};

    fn known(nodes: &[u64]) -> Known {
        let peer = |node: &u64| Peer {
            node: NodeId(*node),
            store: StoreId::random(),
            address: String::new(),
            tls_key: node.to_be_bytes().to_vec(),
        };
        let registry = Registry::of(nodes.iter().map(peer));
        Known(Arc::new(Registered::new(FleetId::random(), 1, NodeId(1), StoreId::random(), registry)))
    }

    fn datagram(sender: u64, message: Message<GossipId>, members: &[u64], tail: &[u8]) -> Vec<u8> {
        let id = |node| GossipId::new(NodeId(node), 7);
        let header = Header { src: id(sender), src_incarnation: 0, dst: id(1), message };
        let mut bytes = Vec::new();
        PostcardCodec.encode_header(&header, &mut bytes).expect("encodes");
        bytes.put_u16(u16::try_from(members.len()).expect("few"));
        for member in members {
            PostcardCodec.encode_member(&Member::alive(id(*member)), &mut bytes).expect("encodes");
        }
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn only_who_is_known_is_left_in_a_datagram() {
        let known = known(&[2, 3]);
        let before = datagram(2, Message::Gossip, &[3, 1000, 1, 1001, 2], b"what they tell");
        let content = datagram(2, Message::Gossip, &[3, 1, 2], b"what they tell");
        assert_eq!(known.sift(&before), Sifted::Content { sender: NodeId(2), content, unknown: 2 });
        let same = datagram(2, Message::Feed, &[3], b"");
        let content = same.clone();
        assert_eq!(known.sift(&same), Sifted::Content { sender: NodeId(2), content, unknown: 0 });
    }

    #[test]
    fn nothing_is_taken_from_who_is_not_known() {
        assert_eq!(known(&[2, 3]).sift(&datagram(4, Message::Gossip, &[2, 3], b"")), Sifted::Unknown);
    }

    #[test]
    fn what_ends_too_early_is_malformed() {
        let whole = datagram(2, Message::Gossip, &[3, 2], b"");
        assert_eq!(known(&[2, 3]).sift(&whole[..whole.len() - 1]), Sifted::Malformed);
        assert_eq!(known(&[2, 3]).sift(&[]), Sifted::Malformed);
    }
}
