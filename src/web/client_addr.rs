//! Whom a request comes from, for limits.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use axum::extract::{ConnectInfo, FromRequestParts};
use http::request::Parts;

/// The client's address; of IPv6 the first 64 bits, which is what one customer is given.
///
/// Behind a proxy on this machine or in the same private network it is the last address of
/// `X-Forwarded-For`, the one that the proxy itself wrote; from anywhere else that header is a claim
/// of the client, and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub IpAddr);

impl<S: Sync> FromRequestParts<S> for ClientAddr {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0.ip());
        // Proxies may add a header of their own rather than extend the client's.
        let forwarded = parts.headers.get_all("x-forwarded-for").iter().next_back();
        Ok(Self(client(peer, forwarded.and_then(|value| value.to_str().ok()))))
    }
}

fn client(peer: IpAddr, forwarded: Option<&str>) -> IpAddr {
    let last = forwarded.and_then(|list| list.rsplit(',').next()?.trim().parse().ok());
    match last {
        Some(last) if is_near(peer.to_canonical()) => network(last),
        _ => network(peer),
    }
}

fn is_near(peer: IpAddr) -> bool {
    match peer {
        IpAddr::V4(peer) => peer.is_loopback() || peer.is_private(),
        IpAddr::V6(peer) => peer.is_loopback() || peer.is_unique_local(),
    }
}

fn network(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V4(addr) => IpAddr::V4(addr),
        IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_near_proxy_is_believed() {
        for (peer, forwarded, expected) in [
            ("203.0.113.9", None, "203.0.113.9"),
            ("203.0.113.9", Some("198.51.100.1"), "203.0.113.9"),
            ("127.0.0.1", Some("10.0.0.1, 198.51.100.1"), "198.51.100.1"),
            ("::ffff:172.17.0.1", Some("198.51.100.1"), "198.51.100.1"),
            ("127.0.0.1", Some("unknown"), "127.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::"),
        ] {
            let peer: IpAddr = peer.parse().expect("an address");
            assert_eq!(client(peer, forwarded).to_string(), expected, "{peer} {forwarded:?}");
        }
    }
}
