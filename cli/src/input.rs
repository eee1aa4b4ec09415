//! Secrets and answers that a command takes in: from a file, from stdin, or asked for at a terminal.
//!
//! A secret never comes from an argument, which every process of the machine could read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dialoguer::{Input, Password};
use secrecy::SecretString;

use crate::failure::Failure;
use crate::output::Output;

/// More than any password or URL, and less than the file somebody names by mistake.
const LONGEST_SECRET: u64 = 64 * 1024;

/// Reads a secret from a file, or from stdin for `-`. The line break at its end is not part of it.
pub fn secret_from_file(path: &Path, what: &str) -> Result<SecretString, Failure> {
    let name = path.display();
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(LONGEST_SECRET + 1).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(LONGEST_SECRET + 1).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::usage("file_unusable", format!("cannot read the {what} from {name}: {error}")))?;
    if text.len() as u64 > LONGEST_SECRET {
        return Err(Failure::usage("file_unusable", format!("{name} is too long for a {what}")));
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Failure::usage("file_unusable", format!("{name} holds no {what}: it is empty")));
    }
    Ok(SecretString::from(text))
}

/// Reads certificates from a file. They are no secret.
pub fn certificates_from_file(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST_SECRET + 1).read_to_string(&mut text));
    read.map_err(|error| Failure::usage("file_unusable", format!("cannot read certificates from {name}: {error}")))?;
    if text.len() as u64 > LONGEST_SECRET || !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(Failure::usage("file_unusable", format!("{name} holds no certificate in PEM format")));
    }
    Ok(text)
}

/// Asks for a password without showing it.
pub fn ask_password(output: &Output) -> Result<SecretString, Failure> {
    if !output.is_interactive() {
        return Err(missing("password", "--password-file FILE, or --password-file - for stdin"));
    }
    let answer = Password::new().with_prompt("Password").interact();
    answer.map(SecretString::from).map_err(|error| unanswered(&error))
}

/// Asks for the passphrase of a backup without showing it; for a new one twice, for a mistyped one opens nothing.
pub fn ask_passphrase(output: &Output, is_new: bool) -> Result<SecretString, Failure> {
    if !output.is_interactive() {
        return Err(missing("passphrase", "--passphrase-file FILE, --passphrase-file - for stdin, or --key-file FILE"));
    }
    let mut question = Password::new().with_prompt("Passphrase");
    if is_new {
        question = question.with_confirmation("The same again", "The two differ.");
    }
    question.interact().map(SecretString::from).map_err(|error| unanswered(&error))
}

/// Asks for a slug to be typed, which confirms something that cannot be taken back.
pub fn confirm_slug(output: &Output, slug: &str, what: &str) -> Result<(), Failure> {
    if !output.is_interactive() {
        return Err(missing("confirmation", "--yes"));
    }
    output.note(what);
    let typed: String = Input::new()
        .with_prompt(format!("Type `{slug}` to go on"))
        .allow_empty(true)
        .interact_text()
        .map_err(|error| unanswered(&error))?;
    if typed.trim() == slug { Ok(()) } else { Err(Failure::failed("not_confirmed", "nothing was done")) }
}

/// Asks for an e-mail address.
pub fn ask_email(output: &Output) -> Result<String, Failure> {
    if !output.is_interactive() {
        return Err(missing("e-mail address", "--email EMAIL"));
    }
    Input::new().with_prompt("E-mail").interact_text().map_err(|error| unanswered(&error))
}

/// Asks for a line of text, at a terminal that is known to be there.
pub fn ask_line(prompt: &str) -> Result<String, Failure> {
    Input::new().with_prompt(prompt).allow_empty(true).interact_text().map_err(|error| unanswered(&error))
}

fn missing(what: &str, option: &str) -> Failure {
    Failure::usage("input_missing", format!("the {what} is missing, and there is no terminal to ask at")).hint(option)
}

fn unanswered(error: &dialoguer::Error) -> Failure {
    Failure::failed("interrupted", format!("the question was not answered: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn one_line_break_at_the_end_is_not_part_of_a_secret() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        for (text, secret) in [("a b \n", "a b "), ("a\r\n", "a"), ("a", "a"), ("a\n\n", "a\n")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(secret_from_file(&path, "password").unwrap().expose_secret(), secret);
        }
        std::fs::write(&path, "\n").unwrap();
        assert!(secret_from_file(&path, "password").is_err());
        std::fs::write(&path, vec![b'a'; 70_000]).unwrap();
        assert!(secret_from_file(&path, "password").is_err());
    }
}
