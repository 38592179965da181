//! Whom a request comes from, for limits.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
};

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::peers::{Peers, network};

/// The client's address; of IPv6 the first 64 bits.
///
/// Behind a proxy that is believed it is the last address of `X-Forwarded-For` that is not such a
/// proxy's itself; from anybody else that header is a claim of the client, and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub IpAddr);

/// Who sent a request, and on which listener: an extension of each.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) peer: IpAddr,
    pub(super) peers: Peers,
}

impl<S: Sync> FromRequestParts<S> for ClientAddr {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let Some(origin) = parts.extensions.get::<Origin>() else {
            return Ok(Self(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        };
        // Proxies may add a header of their own rather than extend the client's.
        let headers = parts.headers.get_all("x-forwarded-for");
        let forwarded: Vec<&str> = headers.iter().map(|v| v.to_str().unwrap_or_default()).collect();
        Ok(Self(origin.client(&forwarded)))
    }
}

impl Origin {
    fn client(&self, forwarded: &[&str]) -> IpAddr {
        let mut client = self.peer;
        for hop in forwarded.iter().rev().flat_map(|list| list.rsplit(',')) {
            if !self.peers.is_proxy(client) {
                break;
            }
            let Ok(said) = hop.trim().parse() else { break };
            client = said;
        }
        network(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proxy_that_is_named_is_believed() {
        let proxies = ["127.0.0.0/8", "10.1.0.0/16"].map(|net| net.parse().expect("a network"));
        let peers = Peers::new(&proxies, 1);
        for (peer, forwarded, expected) in [
            ("203.0.113.9", &[][..], "203.0.113.9"),
            ("203.0.113.9", &["198.51.100.1"], "203.0.113.9"),
            ("192.168.0.7", &["198.51.100.1"], "192.168.0.7"),
            ("172.17.0.1", &["198.51.100.1"], "172.17.0.1"),
            ("127.0.0.1", &["10.0.0.1, 198.51.100.1"], "198.51.100.1"),
            ("127.0.0.1", &["198.51.100.2", "198.51.100.1"], "198.51.100.1"),
            ("::ffff:127.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            // Through two proxies; what the client wrote itself stands before.
            ("127.0.0.1", &["192.0.2.1, 198.51.100.1, 10.1.2.3"], "198.51.100.1"),
            ("127.0.0.1", &["198.51.100.1", "10.1.2.3"], "198.51.100.1"),
            ("127.0.0.1", &["10.1.2.3"], "10.1.2.3"),
            ("127.0.0.1", &["198.51.100.1, unknown"], "127.0.0.1"),
            ("127.0.0.1", &["198.51.100.1", ""], "127.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", &[], "2001:db8:1:2::"),
        ] {
            let origin = Origin { peer: peer.parse().expect("an address"), peers: peers.clone() };
            assert_eq!(origin.client(forwarded).to_string(), expected, "{peer} {forwarded:?}");
        }
    }
}
