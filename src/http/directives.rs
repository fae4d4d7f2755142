//! What a client, in header fields, and an operator, in options, tell the echo: its status and its delay.

use std::time::Duration;

use crate::http::status::{Rejection, Status, bad};

/// The longest delay for which a client may ask.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// The status and the delay of an echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directives {
    /// The status of the response.
    pub status: Status,
    /// How long the response waits once the request is read.
    pub delay: Duration,
}

/// The fields `X-Echo-Status` and `X-Echo-Delay` of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EchoFields {
    status: Option<Status>,
    delay: Option<Duration>,
    /// Why a field is malformed. It is reported only where the fields have an effect.
    fault: Option<&'static str>,
}

impl EchoFields {
    /// Adds an `X-Echo-Status` field.
    pub(super) fn add_status(&mut self, value: &[u8]) {
        match (parse_status(value), self.status) {
            (Some(status), None) => self.status = Some(status),
            _ => self.fault = Some("X-Echo-Status: expected one number from 200 to 599"),
        }
    }

    /// Adds an `X-Echo-Delay` field.
    pub(super) fn add_delay(&mut self, value: &[u8]) {
        match (parse_delay(value, MAX_DELAY), self.delay) {
            (Some(delay), None) => self.delay = Some(delay),
            _ => {
                let expected =
                    "X-Echo-Delay: expected one duration such as 250ms or 2s, at most 10s";
                self.fault = Some(expected);
            }
        }
    }

    /// The directives for the request: what it has no field for is as `others` say.
    ///
    /// # Errors
    /// 400 for a malformed field, or one that is repeated.
    pub fn or(self, others: Directives) -> Result<Directives, Rejection> {
        match self.fault {
            Some(fault) => Err(bad(fault)),
            None => Ok(Directives {
                status: self.status.unwrap_or(others.status),
                delay: self.delay.unwrap_or(others.delay),
            }),
        }
    }
}

/// Reads a status code from 200 to 599.
pub fn parse_status(text: &[u8]) -> Option<Status> {
    match text {
        [_, _, _] => Status::new(parse_number(text)?.try_into().ok()?),
        _ => None,
    }
}

/// Reads a duration in `ms` or `s`, of at most `longest`.
pub fn parse_delay(text: &[u8], longest: Duration) -> Option<Duration> {
    let delay = if let Some(number) = text.strip_suffix(b"ms") {
        Duration::from_millis(parse_number(number)?)
    } else {
        Duration::from_secs(parse_number(text.strip_suffix(b"s")?)?)
    };
    Some(delay).filter(|delay| *delay <= longest)
}

/// Reads a number of one to six digits.
fn parse_number(text: &[u8]) -> Option<u64> {
    let is_number = matches!(text.len(), 1..=6) && text.iter().all(u8::is_ascii_digit);
    let add = |number, digit: &u8| 10 * number + u64::from(digit - b'0');
    is_number.then(|| text.iter().fold(0, add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_a_number_of_ms_or_s_up_to_the_longest() {
        let ms = |text: &str| {
            let delay = parse_delay(text.as_bytes(), MAX_DELAY);
            delay.map(|delay| delay.as_millis())
        };
        assert_eq!(ms("0ms"), Some(0));
        assert_eq!(ms("250ms"), Some(250));
        assert_eq!(ms("10s"), Some(10_000));
        assert_eq!(ms("10000ms"), Some(10_000));
        for wrong in [
            "",
            "s",
            "ms",
            "5",
            "5m",
            "-1s",
            "1.5s",
            "10001ms",
            "11s",
            "5 s",
            "1000000ms",
        ] {
            assert_eq!(ms(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_field_of_the_request_wins_and_counts_once() {
        let operator = Directives {
            status: Status::NOT_FOUND,
            delay: Duration::from_secs(2),
        };
        let mut fields = EchoFields::default();
        assert_eq!(fields.or(operator), Ok(operator));
        fields.add_status(b"503");
        let Directives { status, delay } = fields.or(operator).unwrap();
        assert_eq!(status, Status::SERVICE_UNAVAILABLE);
        assert_eq!(delay, operator.delay);
        fields.add_delay(b"0ms");
        assert_eq!(fields.or(operator).unwrap().delay, Duration::ZERO);
        fields.add_status(b"503");
        let rejection = fields.or(operator).unwrap_err();
        assert!(rejection.reason.starts_with("X-Echo-Status: "));
    }
}
