//! One process at a time writes in a directory, and one that only reads leaves it as it is.

use super::*;

fn write(directory: &Directory, names: &[&str]) -> Result<Written, String> {
    put(directory, &objects(names, 0)).map_err(|error| error.to_string())
}

#[test]
fn a_directory_that_was_made_again_and_is_another_processs_now_is_not_written_any_more() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("objects");
    let first = Directory::open(&path).unwrap();
    first.lock(None).unwrap();
    assert_eq!(write(&first, &["web"]).unwrap().written, 1);
    fs::rename(&path, temp.path().join("old")).unwrap();
    let second = Directory::open(&path).unwrap();
    second.lock(None).unwrap();
    assert_eq!(write(&second, &["web"]).unwrap().written, 1);
    let text = fs::read_to_string(path.join(PLUGIN)).unwrap();
    fs::write(path.join(format!(".procscan-{PLUGIN}")), "half").unwrap();
    for _ in 0..2 {
        let error = write(&first, &["x"]).unwrap_err();
        assert!(error.contains("another process writes there"), "{error}");
        assert!(first.apply(objects(&[], 0).into_iter().map(Draft::from)).is_err());
        assert!(first.tidy(resources::KINDS).is_err());
    }
    assert_eq!(fs::read_to_string(path.join(PLUGIN)).unwrap(), text);
    assert_eq!(listing(&path).len(), 3);
    assert_eq!(write(&second, &["web", "x"]).unwrap().written, 1);
    // As soon as that process has ended, the first one locks the directory and writes it.
    drop(second);
    assert_eq!(write(&first, &["x"]).unwrap().written, 1);
    assert!(Directory::open(&path).unwrap().lock(None).unwrap_err().to_string().contains("another process"));
}

#[test]
fn a_directory_that_was_removed_is_made_and_locked_again() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("objects");
    let first = Directory::open(&path).unwrap();
    first.lock(None).unwrap();
    write(&first, &["web"]).unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert_eq!(write(&first, &["web"]).unwrap().written, 1);
    assert!(Directory::open(&path).unwrap().lock(None).unwrap_err().to_string().contains("another process"));
    assert_eq!(listing(&path), [LOCK, PLUGIN]);
}

#[tokio::test]
async fn a_preview_neither_makes_the_directory_nor_changes_anything_in_it() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("objects");
    let reading = Directory::at(&path);
    assert_eq!(reading.blocked(&settings(), None).unwrap(), []);
    let all = Output::Directory(reading.clone()).preview(&plan(&["web"]), &settings()).await.unwrap();
    assert_eq!((all.len(), path.exists()), (1, false));
    let unfinished = format!(".procscan-{PLUGIN}");
    fs::create_dir(&path).unwrap();
    fs::write(path.join(&unfinished), "half").unwrap();
    Output::Directory(reading).preview(&plan(&["web"]), &settings()).await.unwrap();
    assert_eq!(listing(&path), [unfinished]);
}
