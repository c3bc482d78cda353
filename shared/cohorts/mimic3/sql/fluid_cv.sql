-- 11. Fluids (CareVue); the stay may be missing.
SELECT
    f.icustay_id,
    seconds(f.charttime) AS charttime,
    f.itemid,
    decimal3(f.amount) AS amount,
    decimal3(f.amount * i.factor) AS tev
FROM inputevents_cv AS f
JOIN items AS i ON i.itemid = f.itemid AND i.extract = 'fluid_cv'
WHERE f.amount IS NOT NULL
ORDER BY f.icustay_id NULLS LAST, charttime, f.itemid, amount
