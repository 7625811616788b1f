from tests.test_search_priors_heads import *
def test_x(project, tmp_path):
    def w(name, **c):
        train(train_arguments(project, tmp_path / name, "menu", **c))
        return sha(tmp_path / name)
    def sha(p):
        import hashlib
        return hashlib.sha256((p/"router.safetensors").read_bytes()).hexdigest()[:8], json.loads((p/"train.json").read_text())["validation"]
    a = w("a", seed_everything=0); b=w("b", warm_start=tmp_path/"a"); c=w("c"); d=w("d", seed_everything=1); e=w("d"); f=w("f"); (tmp_path/"f"/"train.json").unlink(); g=w("f", trainer__max_epochs=3)
    for x in (a,b,c,d,e,f,g): print(x)
    assert 0
