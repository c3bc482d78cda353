-- 4. One row for each ICU stay, with its admission and its patient. The span to death is counted by calendar fields
-- (365.25 days a year, 30 days a month), as Postgres' age() does.
WITH flags AS (
    SELECT DISTINCT d.hadm_id, e.flag
    FROM diagnoses_icd AS d
    JOIN elixhauser AS e
        ON (e.match = 'exact' AND d.icd9_code = e.code)
        OR (e.match = 'prefix3' AND left(d.icd9_code, 3) = e.code)
        OR (e.match = 'prefix4' AND left(d.icd9_code, 4) = e.code)
    WHERE d.seq_num IS NOT NULL AND d.seq_num <> 1
),
counted AS (
    SELECT DISTINCT hadm_id,
        -- One hypertension; simple diabetes and solid tumours only where no worse form is coded.
        CASE WHEN flag IN ('HTN', 'HTNCX') THEN 'hypertension' ELSE flag END AS flag
    FROM flags AS f
    WHERE NOT (flag = 'DM' AND EXISTS (FROM flags AS w WHERE w.hadm_id = f.hadm_id AND w.flag = 'DMCX'))
        AND NOT (flag = 'TUMOR' AND EXISTS (FROM flags AS w WHERE w.hadm_id = f.hadm_id AND w.flag = 'METS'))
),
comorbidity AS (
    SELECT d.hadm_id, count(DISTINCT c.flag) AS elixhauser
    FROM diagnoses_icd AS d
    LEFT JOIN counted AS c ON c.hadm_id = d.hadm_id
    WHERE d.seq_num IS NOT NULL AND d.seq_num <> 1
    GROUP BY d.hadm_id
)
SELECT
    s.subject_id,
    s.hadm_id,
    s.icustay_id,
    seconds(a.admittime) AS admittime,
    seconds(a.dischtime) AS dischtime,
    row_number() OVER (PARTITION BY s.subject_id ORDER BY s.intime, s.icustay_id) AS adm_order,
    CASE s.first_careunit
        WHEN 'NICU' THEN 5 WHEN 'SICU' THEN 2 WHEN 'CSRU' THEN 4 WHEN 'CCU' THEN 6 WHEN 'MICU' THEN 1 WHEN 'TSICU' THEN 3
    END AS unit,
    seconds(s.intime) AS intime,
    seconds(s.outtime) AS outtime,
    s.los,
    days(seconds(s.intime) - seconds(p.dob)) AS age,
    seconds(p.dob) AS dob,
    seconds(p.dod) AS dod,
    p.expire_flag,
    CASE p.gender WHEN 'M' THEN 1 WHEN 'F' THEN 2 END AS gender,
    CASE WHEN p.dod IS NOT NULL THEN CAST(epoch(age(p.dod, a.dischtime)) <= 86400 AS INTEGER) END AS morta_hosp,
    CASE WHEN p.dod IS NOT NULL THEN CAST(epoch(age(p.dod, s.intime)) <= 90 * 86400 AS INTEGER) END AS morta_90,
    c.elixhauser
FROM icustays AS s
JOIN admissions AS a ON a.hadm_id = s.hadm_id
JOIN patients AS p ON p.subject_id = s.subject_id
LEFT JOIN comorbidity AS c ON c.hadm_id = s.hadm_id
ORDER BY s.subject_id, s.intime, s.icustay_id
