-- {"token": "sophia-BlwQwHzom-7M6uLDrghbJUuY0SPDgW34TUE8XnwscZU", "succeeded": "01a2146f-772f-76d3-820a-8a4836300d10", "gone": "01a2146f-77d7-7e25-86ce-9cbd4da543e2", "failed": "01a2146f-781f-7b31-b9f6-39c6d5d3edf5", "cancelled": "01a2146f-785f-71f0-8053-ff06e3976503", "expired": "01a2146f-7883-7584-baad-ffb7750df1ba", "running": "01a2146f-78eb-7f99-986d-4d822ab2d71b", "lost": "01a2146f-7913-7d96-8425-b0d9684af04b", "again": "01a2146f-792f-764c-be10-c8e9d8903e59", "queued": "01a2146f-7979-799a-8664-aa92147d2a2b", "queued later": "01a2146f-79ab-7304-8419-2e698f70561b", "queued urgent": "01a2146f-79c3-7b50-aa5c-796da47f5373", "queued of another": "01a2146f-79ce-7e4d-95c1-7cc59727166e", "at": 1795639179.7280028}
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0005');
CREATE TABLE api_keys (
	name TEXT NOT NULL, 
	sha256 TEXT NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (name), 
	UNIQUE (sha256)
);
INSERT INTO "api_keys" VALUES('studio','87636080efa1f7b7eeb745bf0b32dfc93672800c592c7398d39f4f985435dce5',1.79563917903398132325e+09);
CREATE TABLE decisions (
	model TEXT NOT NULL, 
	target INTEGER NOT NULL, 
	reason TEXT NOT NULL, 
	decided_at DOUBLE NOT NULL, 
	PRIMARY KEY (model)
);
INSERT INTO "decisions" VALUES('ace-step',1,'because',1.7956391798340172768e+09);
CREATE TABLE device_hours (
	hour BIGINT NOT NULL, 
	worker TEXT NOT NULL, 
	model TEXT NOT NULL, 
	node TEXT NOT NULL, 
	price_per_hour DOUBLE NOT NULL, 
	loading_s DOUBLE NOT NULL, 
	idle_s DOUBLE NOT NULL, 
	generating_s DOUBLE NOT NULL, 
	PRIMARY KEY (hour, worker)
);
INSERT INTO "device_hours" VALUES(498788,'alive','ace-step','n',0.5,0.0,0.0,1.0);
CREATE TABLE jobs (
	id TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	model TEXT NOT NULL, 
	state TEXT NOT NULL, 
	priority SMALLINT NOT NULL, 
	request JSON NOT NULL, 
	audio_seconds DOUBLE NOT NULL, 
	idempotency_key TEXT, 
	fingerprint TEXT, 
	created_at DOUBLE NOT NULL, 
	deadline_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	finished_at DOUBLE, 
	attempt INTEGER NOT NULL, 
	max_attempts INTEGER NOT NULL, 
	lease_until DOUBLE, 
	worker TEXT, 
	progress JSON, 
	warnings JSON, 
	audio JSON, 
	timing JSON, 
	error JSON, 
	version INTEGER NOT NULL, turn DOUBLE DEFAULT '0' NOT NULL, gpu_s DOUBLE DEFAULT '0' NOT NULL, audio_gone_at DOUBLE, 
	PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES('01a2146f-772f-76d3-820a-8a4836300d10','studio','ace-step','succeeded',5,'{"prompt": "piano", "lyrics": "[verse]\n\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": 90, "keyscale": "A minor", "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": "https://studio.example/hook", "metadata": {"a": "b"}}',2.0,NULL,NULL,1.79563917908101367947e+09,1.79572557908101367949e+09,1.79563917911698222164e+09,1.79563917914498448373e+09,1,3,NULL,'w',NULL,'["a warning"]','[{"key": "01a2146f-772f-76d3-820a-8a4836300d10/1/0.wav", "format": "wav", "seconds": 2.0, "sample_rate": 48000, "channels": 2, "bytes": 1120, "sha256": "a369ff09b44c37375fc6e8ad4c2334cc4c91b4f8eb29d455d1efdfcc3b7d2077", "seed": 1}]','{"queued_s": 0.1, "generate_s": 1.0, "encode_s": 0.1, "gpu_s": 1.0}',NULL,3,0.0,1.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-77d7-7e25-86ce-9cbd4da543e2','studio','ace-step','succeeded',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,NULL,NULL,1.79563917922798538208e+09,1.79572557922798538209e+09,1.7956391792530105114e+09,1.79563917925401639935e+09,1,3,NULL,'w',NULL,'["a warning"]','[{"key": "01a2146f-77d7-7e25-86ce-9cbd4da543e2/1/0.wav", "format": "wav", "seconds": 2.0, "sample_rate": 48000, "channels": 2, "bytes": 1120, "sha256": "a369ff09b44c37375fc6e8ad4c2334cc4c91b4f8eb29d455d1efdfcc3b7d2077", "seed": 1}]','{"queued_s": 0.1, "generate_s": 1.0, "encode_s": 0.1, "gpu_s": 1.0}',NULL,4,0.0,1.0,1.79563917929300212862e+09);
INSERT INTO "jobs" VALUES('01a2146f-781f-7b31-b9f6-39c6d5d3edf5','studio','ace-step','failed',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": "https://studio.example/hook", "metadata": {}}',2.0,NULL,NULL,1.79563917929698514935e+09,1.79572557929698514937e+09,1.79563917932498741153e+09,1.79563917933399963379e+09,1,3,NULL,'w',NULL,NULL,NULL,NULL,'{"code": "generation_failed", "message": "it does not work"}',3,0.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-785f-71f0-8053-ff06e3976503','studio','ace-step','cancelled',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,NULL,NULL,1.79563917936099624633e+09,1.7957255793609962464e+09,NULL,1.79563917938598108289e+09,0,3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,2,0.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-7883-7584-baad-ffb7750df1ba','studio','ace-step','expired',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,NULL,NULL,1.79563917939700484274e+09,1.79563917939700484274e+09,NULL,1.79563917943498492241e+09,0,3,NULL,NULL,NULL,NULL,NULL,NULL,'{"code": "deadline_exceeded", "message": "The job''s deadline (deadline_s) passed before it ended"}',2,0.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-78eb-7f99-986d-4d822ab2d71b','studio','ace-step','running',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,NULL,NULL,1.79563917950100755691e+09,1.79572557950100755684e+09,1.79563917952699804306e+09,NULL,1,3,1.79564277952699804302e+09,'alive',NULL,NULL,NULL,NULL,NULL,2,0.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-7913-7d96-8425-b0d9684af04b','studio','ace-step','running',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,NULL,NULL,1.79563917954099917413e+09,1.79572557954099917406e+09,1.79563917956598401073e+09,NULL,1,3,1.79564277956598401068e+09,'vanished',NULL,NULL,NULL,NULL,NULL,2,0.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-792f-764c-be10-c8e9d8903e59','studio','ace-step','queued',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,NULL,NULL,1.79563917958199691779e+09,1.79572557958199691772e+09,1.79563917960999917984e+09,NULL,1,3,NULL,NULL,NULL,NULL,NULL,NULL,'{"code": "bad_audio", "message": "silence"}',3,0.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-7979-799a-8664-aa92147d2a2b','studio','ace-step','queued',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,'once','f',1.79563917967300415044e+09,1.79572557967300415037e+09,NULL,NULL,0,3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,2.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-79ab-7304-8419-2e698f70561b','studio','ace-step','queued',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 2, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',4.0,NULL,NULL,1.79563917969400596618e+09,1.7957255796940059662e+09,NULL,NULL,0,3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,4.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-79c3-7b50-aa5c-796da47f5373','studio','ace-step','queued',9,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 9, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,NULL,NULL,1.79563917971798467634e+09,1.7957255797179846764e+09,NULL,NULL,0,3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0.0,0.0,NULL);
INSERT INTO "jobs" VALUES('01a2146f-79ce-7e4d-95c1-7cc59727166e','guest','ace-step','queued',5,'{"prompt": "piano", "lyrics": "", "model": "ace-step", "task_type": "text2music", "duration": 2.0, "variations": 1, "seed": 1, "format": "wav", "bpm": null, "keyscale": null, "timesignature": null, "vocal_language": "en", "steps": 4, "guidance_scale": null, "shift": null, "cfg_interval_start": 0.0, "cfg_interval_end": 1.0, "priority": 5, "deadline_s": null, "webhook_url": null, "metadata": {}}',2.0,NULL,NULL,1.79563917972800278664e+09,1.79572557972800278666e+09,NULL,NULL,0,3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0.0,0.0,NULL);
CREATE TABLE leases (
	name TEXT NOT NULL, 
	holder TEXT NOT NULL, 
	until DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "leases" VALUES('audit','janitor',1.79563923990301704401e+09);
CREATE TABLE loads (
	id TEXT NOT NULL, 
	model TEXT NOT NULL, 
	deployment TEXT NOT NULL, 
	host TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	born BIGINT NOT NULL, 
	began_at DOUBLE NOT NULL, 
	ended_at DOUBLE, 
	code TEXT, 
	message TEXT, 
	phase TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "loads" VALUES('01a2146f-7a05-7203-9291-9ec7bde20905','ace-step','d','elsewhere',1,1,1.79563917978300142293e+09,1.79563917979398512837e+09,NULL,NULL,NULL);
INSERT INTO "loads" VALUES('01a2146f-7a12-7c4a-acd9-53c3ff105d25','ace-step','d','elsewhere',1,1,1.79563917979700279231e+09,1.79563917979901432994e+09,'disk_full','no room','download');
CREATE TABLE owner_hours (
	hour BIGINT NOT NULL, 
	owner TEXT NOT NULL, 
	model TEXT NOT NULL, 
	songs BIGINT NOT NULL, 
	audio_s DOUBLE NOT NULL, 
	gpu_s DOUBLE NOT NULL, 
	wasted_s DOUBLE NOT NULL, 
	PRIMARY KEY (hour, owner, model)
);
INSERT INTO "owner_hours" VALUES(498788,'studio','ace-step',2,4.0,2.0,0.0);
CREATE TABLE webhook_deliveries (
	id TEXT NOT NULL, 
	job TEXT NOT NULL, 
	event TEXT NOT NULL, 
	url TEXT NOT NULL, 
	host TEXT NOT NULL, 
	state TEXT NOT NULL, 
	attempts INTEGER NOT NULL, 
	history JSON NOT NULL, 
	created_at DOUBLE NOT NULL, 
	due_at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(job) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "webhook_deliveries" VALUES('01a2146f-7789-7c91-93a3-3bee25bc6dfe','01a2146f-772f-76d3-820a-8a4836300d10','job.succeeded','https://studio.example/hook','studio.example','delivered',1,'[{"at": 1795639179.2050123, "status": 200, "error": null}]',1.79563917914599037168e+09,1.79563917920601820942e+09);
INSERT INTO "webhook_deliveries" VALUES('01a2146f-7847-7628-a1dc-d1c060f05319','01a2146f-781f-7b31-b9f6-39c6d5d3edf5','job.failed','https://studio.example/hook','studio.example','pending',0,'[]',1.79563917934800100321e+09,1.79563917934800100321e+09);
CREATE TABLE workers (
	id TEXT NOT NULL, 
	model TEXT NOT NULL, 
	node TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	device TEXT NOT NULL, 
	phase TEXT NOT NULL, 
	phase_since DOUBLE NOT NULL, 
	progress DOUBLE, 
	detail TEXT NOT NULL, 
	error JSON, 
	facts JSON, 
	job TEXT, 
	seen_at DOUBLE NOT NULL, host TEXT DEFAULT '' NOT NULL, born BIGINT DEFAULT '0' NOT NULL, moved_at DOUBLE DEFAULT '0' NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "workers" VALUES('alive','ace-step','n',1,'cpu','generating',1795639179.78099,NULL,'',NULL,NULL,'01a2146f-78eb-7f99-986d-4d822ab2d71b',1795639179.78099,'elsewhere',1,1795639179.78099);
CREATE INDEX jobs_leases ON jobs (lease_until) WHERE state = 'running';
CREATE INDEX jobs_deadlines ON jobs (deadline_at) WHERE state in ('queued', 'running');
CREATE INDEX jobs_measured ON jobs (model, finished_at) WHERE state = 'succeeded';
CREATE UNIQUE INDEX jobs_idempotency ON jobs (owner, idempotency_key) WHERE idempotency_key is not null;
CREATE INDEX jobs_by_owner ON jobs (owner, id);
CREATE INDEX jobs_queue ON jobs (model, priority DESC, turn, created_at, id) WHERE state = 'queued';
CREATE INDEX loads_by_model ON loads (model, deployment, began_at);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (due_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_job ON webhook_deliveries (job, id);
CREATE INDEX jobs_audio ON jobs (finished_at) WHERE state = 'succeeded' and audio_gone_at is null;
CREATE INDEX jobs_ended ON jobs (finished_at) WHERE finished_at is not null;
CREATE INDEX jobs_ended_by_state ON jobs (state, id) WHERE finished_at is not null;
COMMIT;
