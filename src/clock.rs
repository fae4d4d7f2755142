//! The time of day as HTTP and the log write it, in UTC.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A moment, as the time since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(Duration);

impl Moment {
    /// This moment.
    pub fn now() -> Moment {
        Moment(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }

    /// `Sun, 06 Nov 1994 08:49:37 GMT` (IMF-fixdate, RFC 9110, 5.6.7).
    pub fn imf_fixdate(self) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            let (year, month, day) = self.date();
            let (hour, minute, second) = self.time();
            let name = DAYS[(self.days() % 7) as usize];
            let month = MONTHS[month as usize - 1];
            write!(
                f,
                "{name}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
            )
        })
    }

    /// `1994-11-06T08:49:37.000Z` (RFC 3339).
    pub fn rfc3339(self) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            let (year, month, day) = self.date();
            let (hour, minute, second) = self.time();
            let millis = self.0.subsec_millis();
            write!(
                f,
                "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
            )
        })
    }

    fn days(self) -> u64 {
        self.0.as_secs() / 86_400
    }

    fn time(self) -> (u64, u64, u64) {
        let second = self.0.as_secs() % 86_400;
        (second / 3600, second / 60 % 60, second % 60)
    }

    /// Year, month and day: eras of 400 years, each counted from a 1st of March, so that the leap
    /// day comes last.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(seconds: u64) -> Moment {
        Moment(Duration::from_millis(seconds * 1000 + 7))
    }

    #[test]
    fn the_example_of_rfc_9110_is_written_as_there() {
        assert_eq!(
            moment(784_111_777).imf_fixdate().to_string(),
            "Sun, 06 Nov 1994 08:49:37 GMT"
        );
        assert_eq!(
            moment(784_111_777).rfc3339().to_string(),
            "1994-11-06T08:49:37.007Z"
        );
    }

    #[test]
    fn leap_days_and_the_ends_of_years_are_right() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(moment(seconds).imf_fixdate().to_string(), text);
        }
    }
}
