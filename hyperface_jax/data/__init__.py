"""Records, builders, pairs and the pipeline.

    sources          opens whatever there is at a path: records, folders, tars, lists
    face_set         what all of them become: FaceSet
    datasets         prepared sets and sets at a path, by name
    builders         TFDS builders of users' own faces; synth_faces: rendered ones
    preparing        a FaceSet -> shards, parallel and resumable
    splits           who is trained on and who is tested on
    evaluation_set   what the protocols of a test set need; pairs: who is compared
    pipeline         (seed, step) -> global batch; orders: which examples, when
    decode           image bytes -> uint8 RGB
    alignment        five points -> the crop that networks expect
    recordio, safe_pickle, image_list, image_files, name_lists   readers

Only these modules import TFDS; Grain they and `evaluation.forward`.
"""
