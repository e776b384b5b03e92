//! A mark on the disk that changes whenever a daemon puts a policy in force. A daemon that drains
//! beside it thus learns of that, and cuts what the new policy forbids.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

/// The mark, as one daemon knows it.
#[derive(Debug)]
pub(super) struct PolicyMark {
    file: PathBuf,
    known: Option<String>,
}

impl PolicyMark {
    /// Returns the mark in this folder, which has not been read yet.
    pub(super) fn of(state_dir: &Path) -> Self {
        Self { file: state_dir.join("policy-mark"), known: None }
    }

    /// Writes a new mark: a policy has been put in force.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mark = format!("{}.{}\n", now.as_nanos(), process::id());
        let new = self.file.with_extension("new");
        fs::write(&new, &mark)?;
        fs::rename(&new, &self.file)?;
        self.known = Some(mark);
        Ok(())
    }

    /// Returns whether another daemon has put a policy in force since the last call, or since this
    /// daemon did.
    pub(super) fn is_new(&mut self) -> io::Result<bool> {
        let mark = match fs::read_to_string(&self.file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            mark => mark?,
        };
        Ok(self.known.replace(mark.clone()) != Some(mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_daemon_puts_in_force_another_learns_once() {
        let folder = std::env::temp_dir().join(format!("cloakroom-mark-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [mut one, mut other] = [(); 2].map(|()| PolicyMark::of(&folder));
        assert!(!one.is_new().unwrap(), "nobody has yet");
        one.renew().unwrap();
        assert!(!one.is_new().unwrap(), "it was this one");
        other.renew().unwrap();
        assert!(one.is_new().unwrap());
        assert!(!one.is_new().unwrap(), "it is known");
        fs::remove_dir_all(&folder).unwrap();
        assert!(!one.is_new().unwrap());
    }
}
