//! What a server has answered to a SYN, and which acknowledgement of it completes the handshake.
//!
//! A half-open row keeps two of the server's numbers: the last one in its [word of sequence numbers](crate::flow::SEQUENCE_WORD),
//! and one from before in the upper half of the [word](crate::flow::STICKY_WORD) that has the sticky record once there is one,
//! 31 bits of it. They stand for one of two things:
//!
//! - the last is ahead of the first by no more than a window: the server sent data with or behind its SYN-ACK (TCP Fast Open,
//!   RFC 7413), and the client may acknowledge any part of it. A window in a SYN is never scaled (RFC 7323 section 2.2);
//! - they are the numbers of two SYN-ACKs: the server forgot the first (SYN cookies, RFC 4987; a restart) and answered the
//!   client's repeated SYN with another. The client acknowledges the one that reached it.

/// How far behind a SYN, or ahead of a SYN-ACK, data may reach before the handshake is complete: a window that is not scaled.
pub const FIRST_WINDOW: u32 = 0xffff;

const KEPT: u32 = 0x7fff_ffff;
const KEPT_SHIFT: u32 = 32;

/// What a server has answered: two numbers, as the [module](self) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The one from before; its lower 31 bits.
    pub first: u32,
    /// The last.
    pub last: u32,
}

/// Whether an acknowledgement is of a SYN with this number: data in it may be acknowledged with it, or left out.
#[inline(always)]
#[must_use]
pub const fn answers_syn(syn: u32, acknowledgment: u32) -> bool {
    acknowledgment.wrapping_sub(syn).wrapping_sub(1) <= FIRST_WINDOW
}

impl Answered {
    /// A server's first SYN-ACK, with so many bytes of data.
    #[inline(always)]
    #[must_use]
    pub const fn new(sequence: u32, data: u32) -> Self {
        Self { first: sequence & KEPT, last: sequence.wrapping_add(data) }
    }

    /// As a row has it in the words of its sequence numbers and of its sticky record.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(sequences: u64, sticky: u64) -> Self {
        Self { first: (sticky >> KEPT_SHIFT) as u32 & KEPT, last: (sequences >> 32) as u32 }
    }

    /// The word with the sticky record, with the number from before in the place of the record.
    #[inline(always)]
    #[must_use]
    pub const fn in_sticky(self, word: u64) -> u64 {
        word & 0xffff_ffff | (self.first as u64 & KEPT as u64) << KEPT_SHIFT
    }

    /// How far the last number is ahead of the first, if they are of one SYN-ACK; else more than a window.
    const fn span(self) -> u32 {
        self.last.wrapping_sub(self.first) & KEPT
    }

    const fn is_one(self) -> bool {
        self.span() <= FIRST_WINDOW
    }

    /// The number of the SYN-ACK that came last.
    const fn latest(self) -> u32 {
        if self.is_one() { self.last.wrapping_sub(self.span()) } else { self.last }
    }

    /// After another SYN-ACK.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, sequence: u32, data: u32) -> Self {
        let latest = self.latest();
        if sequence == latest {
            return self.and_data(sequence.wrapping_add(1), data);
        }
        if sequence & KEPT == self.first {
            return self;
        }
        Self { first: latest & KEPT, last: sequence }
    }

    /// After a segment behind the SYN-ACK, whose data begins at this number.
    #[inline(always)]
    #[must_use]
    pub const fn and_data(self, sequence: u32, data: u32) -> Self {
        if !self.is_one() {
            return self;
        }
        let before = sequence.wrapping_sub(self.latest()).wrapping_sub(1);
        if before > FIRST_WINDOW || data > FIRST_WINDOW - before {
            return self;
        }
        let span = before + data;
        if span <= self.span() { self } else { Self { last: self.latest().wrapping_add(span), ..self } }
    }

    /// Whether this acknowledgement is of it.
    #[inline(always)]
    #[must_use]
    pub const fn is_acknowledged_by(self, acknowledgment: u32) -> bool {
        let number = acknowledgment.wrapping_sub(1);
        if self.is_one() {
            self.last.wrapping_sub(number) <= self.span()
        } else {
            number == self.last || number & KEPT == self.first
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_syn_with_data_may_be_answered_with_or_without_it() {
        let syn = u32::MAX - 3;
        let fits = |ahead: u32| answers_syn(syn, syn.wrapping_add(ahead));
        assert!(fits(1) && fits(500) && fits(1 + FIRST_WINDOW));
        assert!(!fits(0) && !fits(2 + FIRST_WINDOW) && !fits(u32::MAX));
    }

    #[test]
    fn without_data_one_number_in_four_billion_completes_the_handshake() {
        let answered = Answered::new(0x8000_0000, 0);
        assert!(answered.is_acknowledged_by(0x8000_0001));
        for wrong in [0x8000_0000, 0x8000_0002, 1, 0x7fff_ffff, 0] {
            assert!(!answered.is_acknowledged_by(wrong), "{wrong:#x}");
        }
    }

    #[test]
    fn of_two_syn_acks_with_different_numbers_either_may_be_acknowledged_and_of_three_the_last_two() {
        let (a, b, c) = (17, 0xc000_0000, 0x2345_6789);
        let two = Answered::new(a, 0).and(b, 0);
        assert!(two.is_acknowledged_by(a + 1) && two.is_acknowledged_by(b + 1));
        assert!(!two.is_acknowledged_by(a) && !two.is_acknowledged_by(b) && !two.is_acknowledged_by(b + 2));
        assert_eq!(two.and(a, 0), two, "the first one, sent again");
        assert_eq!(two.and(b, 0), two, "the second one, sent again");
        let three = two.and(c, 0);
        assert!(three.is_acknowledged_by(b + 1) && three.is_acknowledged_by(c + 1));
        assert!(!three.is_acknowledged_by(a + 1));
    }

    proptest! {
        #[test]
        fn data_behind_a_syn_ack_may_be_acknowledged_in_part_and_no_further(
            sequence in any::<u32>(), with in 0_u32..3_000, behind in 0_u32..9_000, part in any::<u32>(), beyond in 1_u32..1 << 30,
        ) {
            let answered = Answered::new(sequence, with).and_data(sequence.wrapping_add(1 + with), behind);
            let all = with + behind;
            prop_assert!(answered.is_acknowledged_by(sequence.wrapping_add(1 + part % (all + 1))));
            prop_assert!(!answered.is_acknowledged_by(sequence.wrapping_add(1 + all + beyond)));
            prop_assert!(!answered.is_acknowledged_by(sequence));
            prop_assert_eq!(answered.and(sequence, with), answered, "sent again");
        }

        #[test]
        fn what_is_far_behind_a_syn_ack_is_no_data_of_it(sequence in any::<u32>(), before in 0x1_0000_u32.., data in any::<u32>()) {
            let answered = Answered::new(sequence, 0);
            prop_assert_eq!(answered.and_data(sequence.wrapping_add(1).wrapping_add(before), data), answered);
        }

        #[test]
        fn packing_loses_nothing(first in 0_u32..=KEPT, last in any::<u32>(), made_at in any::<u32>()) {
            let answered = Answered { first, last };
            let sticky = answered.in_sticky(u64::from(made_at) | u64::MAX << 32);
            prop_assert_eq!(Answered::from_words(u64::from(last) << 32, sticky), answered);
            prop_assert_eq!(sticky & 0xffff_ffff, u64::from(made_at));
            prop_assert_eq!(sticky >> 63, 0, "no sticky record");
        }
    }
}
