-- 14. Vasopressors (CareVue), the same; exactly 0.2 Umin of vasopressin falls between two rules, as in the original.
SELECT
    v.icustay_id,
    v.itemid,
    seconds(v.charttime) AS charttime,
    decimal3(CASE
        WHEN i.grp IN ('norepinephrine', 'epinephrine') AND v.rateuom = 'mcgkgmin' THEN v.rate
        WHEN i.grp IN ('norepinephrine', 'epinephrine') AND v.rateuom = 'mcgmin' THEN v.rate / 80
        WHEN i.grp = 'vasopressin' AND v.rate > 0.2 THEN v.rate * 5 / 60
        WHEN i.grp = 'vasopressin' AND v.rateuom = 'Umin' AND v.rate < 0.2 THEN v.rate * 5
        WHEN i.grp = 'vasopressin' AND v.rateuom = 'Uhr' THEN v.rate * 5 / 60
        WHEN i.grp = 'phenylephrine' AND v.rateuom = 'mcgkgmin' THEN v.rate * 0.45
        WHEN i.grp = 'phenylephrine' AND v.rateuom = 'mcgmin' THEN v.rate * 0.45 / 80
        WHEN i.grp = 'dopamine' AND v.rateuom = 'mcgkgmin' THEN v.rate * 0.01
        WHEN i.grp = 'dopamine' AND v.rateuom = 'mcgmin' THEN v.rate * 0.01 / 80
    END) AS rate_std
FROM inputevents_cv AS v
JOIN items AS i ON i.itemid = v.itemid AND i.extract = 'vaso_cv'
WHERE v.rate IS NOT NULL
ORDER BY v.icustay_id NULLS LAST, v.itemid, charttime, rate_std NULLS LAST
