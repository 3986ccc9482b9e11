//! What an error of a probe's socket says about the server: the one table of it.
//!
//! A verdict needs an answer from the network, or the lack of one. What fails on this machine says nothing about a
//! server, and whatever is not in the table is taken for this machine's: a server is never called down for an error
//! that nobody thought of.

use std::io;

/// Where an error came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A call that returned at once, before the network could say anything: `socket`, `setsockopt`, `bind`, `connect`.
    Call,
    /// Later: the end of connecting (`SO_ERROR`), reading, writing.
    Network,
}

/// What an error says about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The server itself has answered, with a refusal.
    Refusal,
    /// The server has not answered: nothing came, or somebody on the way says that it cannot be reached.
    Silence,
    /// Nothing: it comes from this machine.
    Nothing,
}

/// A row of the table.
struct Row {
    errno: i32,
    /// What it means of a call that returned at once.
    call: Meaning,
    /// What it means when the network could have its say.
    network: Meaning,
    words: &'static str,
}

const fn here(errno: i32, words: &'static str) -> Row {
    Row { errno, call: Meaning::Nothing, network: Meaning::Nothing, words }
}

/// From a call, the routing table's answer or a rule of this machine; later, an ICMP error or the neighbour's silence.
const fn silence(errno: i32, words: &'static str) -> Row {
    Row { errno, call: Meaning::Nothing, network: Meaning::Silence, words }
}

/// Sources: connect(2), socket(2), bind(2), read(2), write(2), tcp(7), ip(7), and `icmp_err_convert`, `tab_unreach` of the
/// kernel for what becomes of ICMP errors.
const TABLE: &[Row] = &[
    // A connection to the same host, as in tests, is refused before the call returns.
    Row {
        errno: libc::ECONNREFUSED,
        call: Meaning::Refusal,
        network: Meaning::Refusal,
        words: "connection refused",
    },
    Row {
        errno: libc::ECONNRESET,
        call: Meaning::Nothing,
        network: Meaning::Refusal,
        words: "the server reset the connection",
    },
    // Written to after the server's RST.
    Row {
        errno: libc::EPIPE,
        call: Meaning::Nothing,
        network: Meaning::Refusal,
        words: "the server reset the connection",
    },
    silence(libc::ETIMEDOUT, "no answer to the connection attempt"),
    // From the call: an `unreachable` route. Later: nobody answered ARP or neighbour discovery, or a router says so.
    silence(libc::EHOSTUNREACH, "no route to host"),
    silence(libc::EHOSTDOWN, "a router does not know the host"),
    // From the call: no route on this machine. Later: a router has none.
    silence(libc::ENETUNREACH, "network unreachable"),
    silence(libc::ENONET, "a router says that the host is cut off"),
    // From the call: a `prohibit` route, or a rule. Later: a router's, in ICMPv6.
    silence(libc::EACCES, "a rule forbids the connection"),
    silence(libc::EPROTO, "an ICMP error: a field of the header is wrong"),
    silence(libc::ENOPROTOOPT, "an ICMP error: no such protocol there"),
    silence(libc::EOPNOTSUPP, "an ICMP error: the source route failed"),
    here(libc::EPERM, "a rule on this machine forbids it"),
    here(libc::EMFILE, "this process has no file descriptor left"),
    here(libc::ENFILE, "this machine has no file descriptor left"),
    here(libc::ENOBUFS, "this machine has no buffer space left"),
    here(libc::ENOMEM, "this machine has no memory left"),
    here(libc::EADDRNOTAVAIL, "no local address or port left to connect from"),
    here(libc::EADDRINUSE, "the local address and port are in use"),
    here(libc::EAGAIN, "no local port left, or too little room in the kernel's routing cache"),
    here(libc::ENETDOWN, "the interface is down"),
    here(libc::ENETRESET, "the network on this machine was reset"),
    here(libc::ENODEV, "the interface is gone"),
    here(libc::ENXIO, "the interface is gone"),
    // `ss --kill`, or a connection that ended without a reason.
    here(libc::ECONNABORTED, "the connection was ended on this machine"),
    here(libc::EMSGSIZE, "a packet was larger than the way takes, as noted on this machine"),
    here(libc::EINTR, "the call was interrupted"),
    here(libc::EINPROGRESS, "the connection was still being made"),
    here(libc::EALREADY, "the connection was still being made"),
    here(libc::EISCONN, "the socket was connected already"),
    here(libc::ENOTCONN, "the socket was not connected"),
    here(libc::ESHUTDOWN, "the socket was shut down"),
    here(libc::EBADF, "the socket was closed on this machine"),
    here(libc::ENOTSOCK, "the socket is none"),
    here(libc::EDESTADDRREQ, "the socket has no destination"),
    here(libc::EPROTOTYPE, "the socket is of another type"),
    here(libc::EPROTONOSUPPORT, "this kernel has no TCP"),
    here(libc::ESOCKTNOSUPPORT, "this kernel has no such sockets"),
    here(libc::EPFNOSUPPORT, "this kernel lacks the protocol family"),
    here(libc::EAFNOSUPPORT, "this kernel lacks the address family"),
    // A `blackhole` route.
    here(libc::EINVAL, "this kernel does not take the address or the option"),
    here(libc::EFAULT, "the kernel was given a bad address"),
    here(libc::EIO, "an input or output error"),
    here(libc::ENOSPC, "no space left"),
    here(libc::EDQUOT, "a quota is used up"),
    here(libc::EFBIG, "a limit of this process was met"),
    here(libc::ENOSR, "no stream resources left"),
    here(libc::ENOSYS, "this kernel lacks the call"),
    here(libc::ECANCELED, "the call was cancelled"),
    here(libc::ETIME, "a timer ran out on this machine"),
    here(libc::ENOKEY, "a key is missing on this machine"),
];

/// What `errno` says about the server, and how to say it.
pub(super) fn meaning(step: Step, errno: i32) -> (Meaning, String) {
    let Some(row) = TABLE.iter().find(|row| row.errno == errno) else {
        return (Meaning::Nothing, io::Error::from_raw_os_error(errno).to_string());
    };
    let meaning = match step {
        Step::Call => row.call,
        Step::Network => row.network,
    };
    (meaning, row.words.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every error number that the kernel can give to a process (`MAX_ERRNO` in include/linux/err.h).
    const ALL: std::ops::RangeInclusive<i32> = 1..=4095;

    fn of(step: Step, wanted: Meaning) -> Vec<i32> {
        ALL.filter(|errno| meaning(step, *errno).0 == wanted).collect()
    }

    fn sorted(mut errnos: Vec<i32>) -> Vec<i32> {
        errnos.sort_unstable();
        errnos
    }

    #[test]
    fn of_all_errors_of_the_kernel_these_alone_speak_of_the_server() {
        assert_eq!(of(Step::Call, Meaning::Refusal), [libc::ECONNREFUSED]);
        assert_eq!(of(Step::Call, Meaning::Silence), Vec::<i32>::new());
        let refusals = vec![libc::ECONNREFUSED, libc::ECONNRESET, libc::EPIPE];
        assert_eq!(of(Step::Network, Meaning::Refusal), sorted(refusals));
        let silences = vec![
            libc::ETIMEDOUT,
            libc::EHOSTUNREACH,
            libc::EHOSTDOWN,
            libc::ENETUNREACH,
            libc::ENONET,
            libc::EACCES,
            libc::EPROTO,
            libc::ENOPROTOOPT,
            libc::EOPNOTSUPP,
        ];
        assert_eq!(of(Step::Network, Meaning::Silence), sorted(silences));
    }

    #[test]
    fn every_error_has_words_and_none_has_two_rows() {
        for errno in ALL {
            let (_, words) = meaning(Step::Network, errno);
            assert!(!words.is_empty(), "{errno}");
        }
        let errnos: BTreeSet<i32> = TABLE.iter().map(|row| row.errno).collect();
        assert_eq!(errnos.len(), TABLE.len());
    }

    #[test]
    fn what_runs_out_on_this_machine_says_nothing_wherever_it_comes_up() {
        for errno in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
            libc::EPERM,
            libc::EBADF,
            libc::ENETDOWN,
        ] {
            for step in [Step::Call, Step::Network] {
                assert_eq!(meaning(step, errno).0, Meaning::Nothing, "{errno}");
            }
        }
    }
}
