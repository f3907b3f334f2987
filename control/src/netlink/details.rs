//! What a link is told to be beyond what forwarding needs: for those who look for what is wrong with
//! a machine.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::parse::{self, Event};
use super::{Error, Link, Requests};

/// A link with its queues, its XDP program and its other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkDetails {
    /// The link itself.
    pub link: Link,
    /// Whether there is somebody at the other end, as far as the driver tells.
    pub carrier: bool,
    /// Queues that it can receive by.
    pub rx_queues: u32,
    /// The XDP program on it.
    pub xdp: Option<Xdp>,
    /// The other end of a veth.
    pub peer: Option<Peer>,
}

/// An XDP program on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xdp {
    /// Its number.
    pub program: u32,
    /// Whether it runs behind the driver (generic mode).
    pub generic: bool,
}

/// The other end of a veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its index.
    pub index: u32,
    /// The number that this network namespace has given to its; `None` when it is here, too.
    pub namespace: Option<i32>,
}

impl Requests {
    /// All links with their details.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn link_details(&mut self) -> Result<Vec<LinkDetails>, Error> {
        let request = Message::GetLink(LinkMessage::default());
        let (messages, _) = self.exchange("list the links", request, NLM_F_DUMP)?;
        let links = messages.into_iter().filter_map(|message| match message {
            Message::NewLink(message) => details(message),
            _ => None,
        });
        Ok(links.collect())
    }

    /// The number that this network namespace has given to another one, if it has.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn namespace_number(&mut self, other: BorrowedFd<'_>) -> Result<Option<i32>, Error> {
        let what = "ask for the number of a network namespace";
        let fd = u32::try_from(other.as_raw_fd()).map_err(|_| Error {
            what: what.to_owned(),
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Fd(fd)];
        let (messages, _) = self.exchange(what, Message::GetNsId(message), 0)?;
        let number = messages.into_iter().find_map(|message| match message {
            Message::NewNsId(message) => message.attributes.into_iter().find_map(|a| match a {
                NsidAttribute::Id(number) => Some(number),
                _ => None,
            }),
            _ => None,
        });
        Ok(number.filter(|number| *number >= 0))
    }
}

fn details(message: LinkMessage) -> Option<LinkDetails> {
    let (mut carrier, mut rx_queues, mut xdp) = (true, 1, None);
    let (mut index, mut namespace) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Carrier(on) => carrier = *on != 0,
            LinkAttribute::NumRxQueues(count) => rx_queues = *count,
            LinkAttribute::Xdp(attributes) => xdp = attached(attributes),
            LinkAttribute::Link(other) => index = Some(*other),
            LinkAttribute::LinkNetNsId(number) => namespace = Some(*number),
            _ => {}
        }
    }
    let Some(Event::Link(link)) = parse::event(Message::NewLink(message), 0) else {
        return None;
    };
    let peer = index.filter(|_| link.kind == super::LinkKind::Veth);
    Some(LinkDetails {
        link,
        carrier,
        rx_queues,
        xdp,
        peer: peer.map(|index| Peer { index, namespace }),
    })
}

fn attached(attributes: &[LinkXdp]) -> Option<Xdp> {
    let generic = attributes
        .iter()
        .any(|a| matches!(a, LinkXdp::Attached(XdpAttached::SocketBuffer)));
    attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(program) if *program != 0 => Some(Xdp {
            program: *program,
            generic,
        }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_no_program_and_no_other_end() {
        let links = Requests::open().unwrap().link_details().unwrap();
        let lo = links.iter().find(|link| link.link.name == "lo").unwrap();
        assert_eq!((lo.xdp, lo.peer, lo.rx_queues), (None, None, 1));
    }

    #[test]
    fn a_program_is_told_with_its_mode() {
        let id = LinkXdp::ProgId(7);
        let told = |mode| attached(&[LinkXdp::Attached(mode), id.clone()]);
        let program = |generic| {
            Some(Xdp {
                program: 7,
                generic,
            })
        };
        assert_eq!(told(XdpAttached::Driver), program(false));
        assert_eq!(told(XdpAttached::SocketBuffer), program(true));
        assert_eq!(attached(&[LinkXdp::Attached(XdpAttached::None)]), None);
    }
}
