//! The current time in UTC, in the formats of HTTP and of the log.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::log::buffer::Buffer;

/// From the weekday of 1970-01-01.
const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// A point in time, as the time since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// The current time.
    pub fn now() -> Timestamp {
        Timestamp(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }

    /// Appends `Sun, 06 Nov 1994 08:49:37 GMT` (IMF-fixdate, RFC 9110, 5.6.7).
    pub fn push_imf_fixdate(self, text: &mut Buffer) {
        let (year, month, day) = self.date();
        let mut date = *b"Sun, 06 Nov 1994 08:49:37 GMT";
        date[..3].copy_from_slice(DAYS[(self.days() % 7) as usize]);
        set_digits(&mut date[5..7], day);
        date[8..11].copy_from_slice(MONTHS[month as usize - 1]);
        set_digits(&mut date[12..16], year);
        self.set_time(&mut date[17..25]);
        text.push(&date);
    }

    /// Appends `1994-11-06T08:49:37.000Z` (RFC 3339).
    pub fn push_rfc3339(self, text: &mut Buffer) {
        let (year, month, day) = self.date();
        let mut date = *b"1994-11-06T08:49:37.000Z";
        set_digits(&mut date[..4], year);
        set_digits(&mut date[5..7], month);
        set_digits(&mut date[8..10], day);
        self.set_time(&mut date[11..19]);
        set_digits(&mut date[20..23], u64::from(self.0.subsec_millis()));
        text.push(&date);
    }

    /// Writes `08:49:37` over such a text.
    fn set_time(self, text: &mut [u8]) {
        let second = self.0.as_secs() % 86_400;
        set_digits(&mut text[..2], second / 3600);
        set_digits(&mut text[3..5], second / 60 % 60);
        set_digits(&mut text[6..8], second % 60);
    }

    /// Days since 1970-01-01.
    fn days(self) -> u64 {
        self.0.as_secs() / 86_400
    }

    /// Year, month and day of the proleptic Gregorian calendar. An era has 400 years (146,097 days) and
    /// begins on a 1st of March, so that a leap day is the last day of a year. 1970-01-01 is day
    /// 719,468 since the 1st of March of the year 0.
    fn date(self) -> (u64, u64, u64) {
        let days = self.days() + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
        let (month, next_year) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        (era * 400 + year + next_year, month, day_of_month)
    }
}

/// Writes the last digits of a number, with leading zeros.
fn set_digits(text: &mut [u8], mut number: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time as text, in a format of [`Timestamp`].
    fn format(seconds: u64, push: impl Fn(Timestamp, &mut Buffer)) -> String {
        let mut text = Buffer::EMPTY;
        push(
            Timestamp(Duration::from_millis(seconds * 1000 + 7)),
            &mut text,
        );
        String::from_utf8(text.bytes().to_vec()).unwrap()
    }

    #[test]
    fn the_example_of_rfc_9110_is_formatted_as_there() {
        assert_eq!(
            format(784_111_777, Timestamp::push_imf_fixdate),
            "Sun, 06 Nov 1994 08:49:37 GMT"
        );
        assert_eq!(
            format(784_111_777, Timestamp::push_rfc3339),
            "1994-11-06T08:49:37.007Z"
        );
    }

    #[test]
    fn leap_days_and_year_ends_are_formatted_correctly() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(format(seconds, Timestamp::push_imf_fixdate), text);
        }
    }
}
