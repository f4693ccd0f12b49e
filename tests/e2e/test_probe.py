import shutil
def test_run(run):
    shutil.copytree(run.folder, "/tmp/e2e", dirs_exist_ok=True)
    print(run.printed)
