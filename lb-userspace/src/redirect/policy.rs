//! What a port-80 request is answered with: a redirect to the same place over `https`, or a refusal.
//!
//! The redirect can never be an open one: its authority is always the host that the client itself
//! asked for, checked by [`AskedHost`], and the path always begins with a slash behind it.

use std::fmt::Write as _;
use std::num::NonZeroU16;

use thiserror::Error;

use super::host::{AskedHost, HostError};

/// What the policy looks at in a request.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The request's method.
    pub method: &'a str,
    /// The request target, raw, in any of its four forms (RFC 9112 3.2).
    pub target: &'a [u8],
    /// The value of every `Host` field line, raw and in order.
    pub hosts: Vec<&'a [u8]>,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// 301 or 308 with this `Location`.
    Redirect {
        /// An absolute `https` URL: the asked host, path and query.
        location: String,
        /// Whether the method has to stay the same, and the body is to be sent again (308): a browser makes a GET of
        /// what was anything but GET and HEAD (RFC 9110 15.4.2).
        keeps_method: bool,
    },
    /// 400 with this reason.
    Refuse(Refusal),
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No `Host`: there is no name to redirect to.
    #[error("the request has no Host header field")]
    NoHost,
    /// More than one `Host` (RFC 9112 3.2 asks for 400).
    #[error("the request has more than one Host header field")]
    SeveralHosts,
    /// A `Host` that is none.
    #[error("the Host header field is not valid: {0}")]
    BadHost(HostError),
    /// An absolute-form target whose authority is not valid.
    #[error("the host in the request target is not valid: {0}")]
    BadAuthority(HostError),
    /// An absolute-form target that names another host than `Host`.
    #[error("the request target and the Host header field name different hosts")]
    HostMismatch,
    /// An absolute-form target that is not `http`.
    #[error("the request target is not an http URL")]
    NotHttp,
    /// `OPTIONS *` or `CONNECT host:port`: nothing that could be redirected.
    #[error("the request target is not a path")]
    NoPath,
}

/// Decides the answer; `https_port` is where the redirect leads, and is written only if it isn't 443.
///
/// Path and query go into the `Location` byte for byte, but for what no URI has and browsers send all the same: quotes,
/// angle brackets, backticks, spaces and bytes beyond ASCII are percent-encoded (RFC 9112 3.2 has it so). A fragment,
/// which is not the server's to see, ends them.
#[must_use]
pub fn decide(request: &Request<'_>, https_port: NonZeroU16) -> Decision {
    match try_decide(request, https_port) {
        Ok(location) => {
            Decision::Redirect { location, keeps_method: !matches!(request.method, "GET" | "HEAD") }
        }
        Err(refusal) => Decision::Refuse(refusal),
    }
}

fn try_decide(request: &Request<'_>, https_port: NonZeroU16) -> Result<String, Refusal> {
    let host = match request.hosts.as_slice() {
        [] => return Err(Refusal::NoHost),
        [one] => AskedHost::parse(one).map_err(Refusal::BadHost)?,
        _ => return Err(Refusal::SeveralHosts),
    };
    let path = asked_path(request, &host)?;

    let mut location = format!("https://{}", host.name());
    if https_port.get() != 443 {
        push(&mut location, format_args!(":{https_port}"));
    }
    push_path(&mut location, path);
    Ok(location)
}

/// The path and query asked for, once the target's form and its authority are found fit.
fn asked_path<'a>(request: &Request<'a>, host: &AskedHost<'_>) -> Result<&'a [u8], Refusal> {
    if request.method == "CONNECT" {
        return Err(Refusal::NoPath);
    }
    let target = request.target.split(|byte| *byte == b'#').next().unwrap_or_default();
    if target.starts_with(b"/") {
        return Ok(target);
    }
    let (scheme, rest) = absolute(target).ok_or(Refusal::NoPath)?;
    if !scheme.eq_ignore_ascii_case(b"http") {
        return Err(Refusal::NotHttp);
    }
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let named = AskedHost::parse(authority).map_err(Refusal::BadAuthority)?;
    if named.same_origin(host) { Ok(path) } else { Err(Refusal::HostMismatch) }
}

/// The scheme of an absolute-form target, and what is behind `://` (RFC 3986 3.1).
fn absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = target.windows(3).position(|window| window == b"://")?;
    let (scheme, rest) = (&target[..end], &target[end + 3..]);
    let is_scheme = scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
    is_scheme.then_some((scheme, rest))
}

fn push_path(location: &mut String, path: &[u8]) {
    if !path.starts_with(b"/") {
        location.push('/');
    }
    for byte in path {
        if byte.is_ascii_graphic() && !b"\"<>`".contains(byte) {
            location.push(char::from(*byte));
        } else {
            push(location, format_args!("%{byte:02X}"));
        }
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String has no way to fail.
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HTTPS: NonZeroU16 = NonZeroU16::new(443).unwrap();

    fn ask(method: &str, target: &str, hosts: &[&str]) -> Decision {
        let hosts = hosts.iter().map(|host| host.as_bytes()).collect();
        decide(&Request { method, target: target.as_bytes(), hosts }, HTTPS)
    }

    fn to(location: &str) -> Decision {
        Decision::Redirect { location: location.to_owned(), keeps_method: false }
    }

    #[test]
    fn the_same_host_path_and_query_are_kept() {
        for (target, host, location) in [
            ("/", "mychart.example", "https://mychart.example/"),
            (
                "/MyChart/a.asp?x=1&y=%20",
                "MyChart.example",
                "https://MyChart.example/MyChart/a.asp?x=1&y=%20",
            ),
            ("/a", "mychart.example:80", "https://mychart.example/a"),
            ("/a?", "mychart.example:8080", "https://mychart.example/a?"),
            ("/a?b=https://evil.com", "10.0.0.1", "https://10.0.0.1/a?b=https://evil.com"),
            ("/", "[2001:db8::1]:80", "https://[2001:db8::1]/"),
            ("/a/../b/%2e%2e", "h", "https://h/a/../b/%2e%2e"),
        ] {
            assert_eq!(ask("GET", target, &[host]), to(location), "{target} {host}");
        }
    }

    #[test]
    fn a_path_that_looks_like_another_authority_stays_a_path() {
        assert_eq!(ask("GET", "//evil.com/x", &["h"]), to("https://h//evil.com/x"));
        assert_eq!(ask("GET", "/\\evil.com", &["h"]), to("https://h/\\evil.com"));
        assert_eq!(ask("GET", "/@evil.com", &["h"]), to("https://h/@evil.com"));
        assert_eq!(ask("GET", "/.evil.com:1/", &["h"]), to("https://h/.evil.com:1/"));
    }

    #[test]
    fn another_https_port_is_written_out() {
        let request = Request { method: "GET", target: b"/a?b", hosts: vec![b"h:80"] };
        assert_eq!(decide(&request, NonZeroU16::new(8443).unwrap()), to("https://h:8443/a?b"));
    }

    #[test]
    fn bytes_beyond_ascii_are_percent_encoded() {
        assert_eq!(ask("GET", "/b\u{fc}cher?\u{e9}", &["h"]), to("https://h/b%C3%BCcher?%C3%A9"));
        let latin = Request { method: "GET", target: b"/b\xfccher", hosts: vec![b"h"] };
        assert_eq!(decide(&latin, HTTPS), to("https://h/b%FCcher"));
    }

    #[test]
    fn what_browsers_send_and_no_uri_has_is_percent_encoded() {
        for (target, location) in [
            ("/a?q=\"x\"&r=<y>", "https://h/a?q=%22x%22&r=%3Cy%3E"),
            ("/<a>\"`", "https://h/%3Ca%3E%22%60"),
            ("/a b?c d", "https://h/a%20b?c%20d"),
            ("/a|b{c}^[d]", "https://h/a|b{c}^[d]"),
            ("/a?b#c", "https://h/a?b"),
            ("http://h/<", "https://h/%3C"),
        ] {
            assert_eq!(ask("GET", target, &["h"]), to(location), "{target}");
        }
    }

    #[test]
    fn only_get_and_head_may_become_a_get() {
        for (method, keeps) in
            [("GET", false), ("HEAD", false), ("POST", true), ("PUT", true), ("BREW", true)]
        {
            let location = "https://h/a".to_owned();
            assert_eq!(
                ask(method, "/a", &["h"]),
                Decision::Redirect { location, keeps_method: keeps },
                "{method}"
            );
        }
    }

    #[test]
    fn an_absolute_target_must_agree_with_host() {
        assert_eq!(ask("GET", "http://Name/a?b", &["name"]), to("https://name/a?b"));
        assert_eq!(ask("GET", "http://name:80/a", &["name"]), to("https://name/a"));
        assert_eq!(ask("GET", "HTTP://name", &["name"]), to("https://name/"));
        assert_eq!(ask("GET", "http://name?q=1", &["name"]), to("https://name/?q=1"));
        for (target, host, refusal) in [
            ("http://evil.com/a", "name", Refusal::HostMismatch),
            ("http://name:8080/a", "name", Refusal::HostMismatch),
            ("https://name/a", "name", Refusal::NotHttp),
            ("ftp://name/a", "name", Refusal::NotHttp),
            ("http://user@name/a", "name", Refusal::BadAuthority(HostError::BadByte(b'@'))),
        ] {
            assert_eq!(ask("GET", target, &[host]), Decision::Refuse(refusal), "{target}");
        }
    }

    #[test]
    fn what_cannot_be_redirected_is_refused() {
        for (method, target, hosts, refusal) in [
            ("GET", "/", &[][..], Refusal::NoHost),
            ("GET", "/", &["a", "b"], Refusal::SeveralHosts),
            ("GET", "/", &["a", "a"], Refusal::SeveralHosts),
            ("GET", "/", &[""], Refusal::BadHost(HostError::Empty)),
            ("GET", "/", &["evil.com/.."], Refusal::BadHost(HostError::BadByte(b'/'))),
            ("OPTIONS", "*", &["h"], Refusal::NoPath),
            ("GET", "*", &["h"], Refusal::NoPath),
            ("CONNECT", "h:443", &["h"], Refusal::NoPath),
            ("CONNECT", "http://h/", &["h"], Refusal::NoPath),
            ("GET", "h:443", &["h"], Refusal::NoPath),
            ("GET", "http://name/", &[], Refusal::NoHost),
        ] {
            assert_eq!(ask(method, target, hosts), Decision::Refuse(refusal), "{method} {target} {hosts:?}");
        }
    }

    fn check_location(decision: &Decision, host: &[u8], port: NonZeroU16) -> Result<(), TestCaseError> {
        let Decision::Redirect { location, .. } = decision else {
            return Ok(());
        };
        prop_assert!(location.bytes().all(|b| b.is_ascii_graphic()), "{location:?}");
        let uri: hyper::Uri =
            location.parse().map_err(|e| TestCaseError::fail(format!("{location:?}: {e}")))?;
        prop_assert_eq!(uri.scheme_str(), Some("https"));
        prop_assert_eq!(uri.port_u16().unwrap_or(443), port.get());
        let asked = str::from_utf8(host).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let without_port = match asked.rfind(']') {
            Some(end) => &asked[..=end],
            None => asked.split(':').next().unwrap_or(asked),
        };
        prop_assert_eq!(uri.host(), Some(without_port));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_input_is_refused_or_sent_to_its_own_host(
            host in prop::collection::vec(any::<u8>(), 0..40),
            target in prop_oneof![
                "[/*a-z.:@\\\\?#%\\[\\]\u{e9} ]{0,30}".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..40),
            ],
            port in any::<NonZeroU16>(),
            method in prop::sample::select(vec!["GET", "HEAD", "POST", "OPTIONS", "CONNECT", "BREW"]),
        ) {
            let request = Request { method, target: &target, hosts: vec![&host] };
            check_location(&decide(&request, port), &host, port)?;
        }

        #[test]
        fn near_valid_hosts_are_refused_or_redirected_to(
            host in "([a-z0-9.-]{0,12}|\\[[0-9a-f:]{0,9}\\]?|[0-9.]{1,15})[@/\\\\%]?(:[0-9]{0,6})?",
            path in "/[!-~]{0,20}",
        ) {
            let request = Request { method: "GET", target: path.as_bytes(), hosts: vec![host.as_bytes()] };
            check_location(&decide(&request, HTTPS), host.as_bytes(), HTTPS)?;
        }

        #[test]
        fn every_ordinary_request_is_redirected(name in "[a-z]{1,9}(\\.[a-z]{2,9}){0,3}", path in "/[a-zA-Z0-9/._~-]{0,30}") {
            let decision = ask("GET", &path, &[&name]);
            prop_assert_eq!(decision, to(&format!("https://{name}{path}")));
        }
    }
}
